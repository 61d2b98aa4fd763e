"""The Slurm scripts, with stand-ins for srun and scontrol: every task knows its place, and only status 75 requeues."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[1] / "recipes" / "librispeech" / "slurm"
TASKS = 4

SRUN = """#!/usr/bin/env bash
# Runs the command once per task, and returns the highest status, as srun does.
[ "$1" = --kill-on-bad-exit=0 ] && shift
highest=0
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@"
  status=$?
  [ $status -gt $highest ] && highest=$status
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) printf 'first\\nsecond\\n';;
  requeue) echo "$2" >> "$REQUEUED";;
esac
"""


@pytest.fixture
def job(tmp_path):
    """Submits a command as a job of two nodes with two tasks each: status, stdout, which jobs were queued again."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def submit(script: str, *command: str, **environment: str) -> tuple[int, str, list[str]]:
        numbers = {"SLURM_JOB_ID": "12345", "SLURM_NTASKS": str(TASKS), "SLURM_JOB_NUM_NODES": "2"}
        places = {"SLURM_JOB_NODELIST": "n[1-2]", "REQUEUED": str(tmp_path / "requeued"), "SPEECHSSL_SLURM": str(SLURM)}
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", SLURM / script, *command],
            env=os.environ | numbers | places | path | environment,
            capture_output=True,
            text=True,
        )
        requeued = tmp_path / "requeued"
        return done.returncode, done.stdout, requeued.read_text().split() if requeued.exists() else []

    return submit


@pytest.mark.parametrize("script", ["one-node.sbatch", "many-nodes.sbatch"])
def test_every_task_knows_its_place(job, script):
    line = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS $1"
    status, out, requeued = job(script, "bash", "-c", line, "x", "an argument", OMP_NUM_THREADS="3")
    assert status == 0
    assert requeued == []
    rows = [row.split(" ", 7) for row in out.splitlines()]
    assert [row[:4] for row in rows] == [[str(rank), "4", str(rank % 2), "2"] for rank in range(TASKS)]
    assert {tuple(row[4:]) for row in rows} == {("first", "32345", "3", "an argument")}


@pytest.mark.parametrize(("status", "queued"), [(0, []), (1, []), (2, []), (75, ["12345"]), (130, [])])
def test_only_status_75_is_queued_again(job, status, queued):
    """One rank's status is enough; the others of a run leave with the same."""
    line = f'[ "$RANK" = 2 ] && exit {status}; exit 0'
    assert job("one-node.sbatch", "bash", "-c", line)[::2] == (status, queued)


def test_restarts_are_bounded(job):
    assert job("one-node.sbatch", "bash", "-c", "exit 75", SLURM_RESTART_COUNT="200")[::2] == (75, [])
    assert job("one-node.sbatch", "bash", "-c", "exit 75", SLURM_RESTART_COUNT="199")[::2] == (75, ["12345"])


def test_the_job_is_warned_in_time():
    """Of the tasks, not of the shell: only they can save."""
    for script in SLURM.glob("*.sbatch"):
        lines = script.read_text().splitlines()
        assert "#SBATCH --signal=USR1@180" in lines
        assert "#SBATCH --requeue" in lines
        assert subprocess.run(["bash", "-n", script]).returncode == 0
