(() => {
  const ask = document.querySelector(".ask"), answer = document.querySelector(".answer");
  const status = ask.querySelector("[role=status]"), file = ask.querySelector("input"), record = ask.querySelector(".record");
  const seconds = Number(ask.dataset.seconds), bytes = Number(ask.dataset.megabytes) * 1e6, rate = 16000;

  // 16-bit mono WAV of what the browser could decode: it reads more formats than the server does.
  function wav(samples) {
    const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
    const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
    text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
    view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
    view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
    text(36, "data"); view.setUint32(40, 2 * samples.length, true);
    samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
    return view.buffer;
  }
  async function prepared(blob) {
    const raw = await blob.arrayBuffer();
    try {
      const sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(raw.slice(0));
      const mono = new Float32Array(sound.length);
      for (let c = 0; c < sound.numberOfChannels; c++) {
        sound.getChannelData(c).forEach((x, i) => { mono[i] += x / sound.numberOfChannels; });
      }
      return wav(mono);
    } catch { return raw; }
  }
  async function send(blob) {
    status.textContent = "Listening ...";
    answer.replaceChildren();
    try {
      const body = await prepared(blob);
      if (body.byteLength > Math.max(bytes, 1)) throw new Error("Too large; send a part of it.");
      const reply = await fetch("/listen", { method: "POST", body, headers: { "X-Speechssl": "1" } });
      const found = await reply.json();
      if (found.error) throw new Error(found.error);
      status.textContent = `${found.seconds.toFixed(1)} s heard.`;
      answer.innerHTML = found.html; // escaped where it was made
      window.bindPage(answer);
    } catch (error) { status.textContent = error.message; }
  }
  file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
  });

  let recorder = null;
  record.addEventListener("click", async () => {
    if (recorder) { recorder.stop(); return; }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const parts = [];
      recorder = new MediaRecorder(stream);
      recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
      recorder.addEventListener("stop", () => {
        stream.getTracks().forEach((track) => track.stop());
        recorder = null;
        record.textContent = "Record";
        record.setAttribute("aria-pressed", "false");
        send(new Blob(parts));
      });
      recorder.start();
      record.textContent = "Stop";
      record.setAttribute("aria-pressed", "true");
      status.textContent = "Recording ...";
      const own = recorder;
      setTimeout(() => { if (recorder === own) own.stop(); }, 1000 * (seconds - 0.5));
    } catch (error) { status.textContent = `No microphone: ${error.message}`; }
  });
})();
