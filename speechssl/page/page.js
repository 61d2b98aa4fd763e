"use strict";
(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const format = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size < 1e-3 ? value.toExponential(2) : value.toPrecision(3);
  };

  // Charts: the lines hold the data's own numbers, which pointer and arrow keys read off.
  function bindPlot(plot) {
    const cursor = plot.querySelector(".cursor"), readout = plot.querySelector(".readout");
    const { x: axis, log, left, right, names } = plot.dataset;
    const low = Number(left), high = Number(right);
    let lines, stops, at = -1;
    const load = () => {
      if (lines) return;
      lines = all(plot, "polyline").map((line) => ({
        line, points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
      }));
      stops = [...new Set(lines.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
    };
    const nearest = (points, x) => {
      let a = 0, b = points.length - 1;
      while (b - a > 1) { const m = (a + b) >> 1; if (points[m][0] < x) a = m; else b = m; }
      return Math.abs(points[a][0] - x) <= Math.abs(points[b][0] - x) ? points[a] : points[b];
    };
    const show = (index) => {
      at = Math.max(0, Math.min(stops.length - 1, index));
      const x = stops[at], share = (x - low) / (high - low);
      readout.replaceChildren();
      const head = document.createElement("b");
      head.textContent = names ? names.split("|")[x] : `${format(x)} ${axis}`;
      readout.append(head);
      for (const { line, points } of lines) {
        if (line.classList.contains("gone") || x < points[0][0] || x > points[points.length - 1][0]) continue;
        const [, y] = nearest(points, x), row = document.createElement("div");
        const name = document.createElement("span"), value = document.createElement("span");
        name.className = line.getAttribute("class").split(" ")[0];
        name.textContent = line.dataset.name;
        value.textContent = format(log === "1" ? 10 ** y : y);
        row.append(name, value);
        readout.append(row);
      }
      cursor.style.left = `${100 * share}%`;
      readout.style.left = share < 0.5 ? `calc(${100 * share}% + 8px)` : "auto";
      readout.style.right = share < 0.5 ? "auto" : `calc(${100 - 100 * share}% + 8px)`;
      cursor.hidden = readout.hidden = false;
    };
    const hide = () => { cursor.hidden = readout.hidden = true; };
    const closest = (x) => {
      let best = 0;
      stops.forEach((stop, i) => { if (Math.abs(stop - x) < Math.abs(stops[best] - x)) best = i; });
      return best;
    };
    plot.addEventListener("pointermove", (event) => {
      load();
      const box = plot.getBoundingClientRect();
      show(closest(low + ((event.clientX - box.left) / box.width) * (high - low)));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      load();
      const jump = Math.max(1, Math.round(stops.length / 20));
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at + jump, PageDown: at - jump, Home: 0, End: stops.length - 1 };
      if (event.key === "Escape") hide();
      else if (event.key in next) { event.preventDefault(); show(next[event.key]); }
    });
  }

  // Legends: of runs (hide and show lines), of classes (bring one out).
  function bindLegend(button) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(pressed));
      const home = button.closest(".group");
      for (const line of all(home, `.plot [data-run="${button.dataset.run}"]`)) line.classList.toggle("gone", !pressed);
    });
  }
  function bindClass(button) {
    button.addEventListener("click", () => {
      const home = button.closest(".maps"), chosen = button.getAttribute("aria-pressed") !== "true";
      for (const other of all(home, "[data-class][aria-pressed]")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(chosen));
      for (const dot of all(home, "circle")) dot.classList.toggle("faint", chosen && dot.dataset.class !== button.dataset.class);
    });
  }

  // Sound: a line runs over the pictures; a click on a picture, or on a word, plays from there. One at a time.
  function bindSound(strip) {
    const sound = strip.parentElement.querySelector("audio"), now = strip.querySelector(".now");
    const seconds = Number(strip.dataset.seconds);
    if (!sound) return;
    const draw = () => {
      now.hidden = false;
      now.style.left = `${Math.min(100, (100 * sound.currentTime) / seconds)}%`;
      if (!sound.paused) requestAnimationFrame(draw);
    };
    const play = (at) => { sound.currentTime = at; sound.play(); };
    sound.addEventListener("play", () => {
      for (const other of all(document, "audio")) if (other !== sound) other.pause();
      draw();
    });
    sound.addEventListener("seeked", draw);
    strip.addEventListener("click", (event) => {
      const word = event.target.closest("[data-at]"), box = strip.getBoundingClientRect();
      play(word ? Number(word.dataset.at) : (seconds * (event.clientX - box.left)) / box.width);
    });
  }

  window.bindPage = (root) => {
    all(root, ".plot").forEach(bindPlot);
    all(root, ".legend .run").forEach(bindLegend);
    all(root, ".legend [data-class]").forEach(bindClass);
    all(root, ".strip").forEach(bindSound);
  };
  window.bindPage(document);
})();
