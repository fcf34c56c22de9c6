# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from patience import wait_until

from stream_vlm_ros.processes.children import Processes, run_until_told, signals_as_ctrl_c

PROGRAMS = {
    "polite": """
        import time
        try:
            print("up", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("bye")
        """,
    "deaf": """
        import signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("up", flush=True)
        time.sleep(60)
        """,
    "failing": "raise SystemExit('no camera')",
    "mother": """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-m", "deaf"], stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        time.sleep(60)
        """,
    "impatient": """
        import os, pathlib, signal, sys, threading, time
        from stream_vlm_ros.processes.children import Processes, run_until_told, signals_as_ctrl_c
        Processes.STEPS = ((signal.SIGINT, 1.0), (signal.SIGTERM, 10.0))
        first, second = map(int, sys.argv[1:])
        try:
            with signals_as_ctrl_c(), Processes(pathlib.Path(os.environ["LOGS"]), {}) as processes:
                processes.start("a", "deaf")
                while processes.tail_of("a") != "up":
                    time.sleep(0.01)
                print(processes._children["a"].pid, flush=True)
                threading.Timer(0.5, os.kill, (os.getpid(), second)).start()
                os.kill(os.getpid(), first)
                time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", processes.status("a"))
        """,
    "killed": """
        import os, pathlib, time
        from stream_vlm_ros.processes.children import Processes, run_until_told, signals_as_ctrl_c
        processes = Processes(pathlib.Path(os.environ["LOGS"]), {})
        processes.start("orphan", "polite")
        print(processes._children["orphan"].pid, flush=True)
        time.sleep(60)
        """,
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The modules above, to be run by their names."""
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    steps = ((signal.SIGINT, 10.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
    monkeypatch.setattr(Processes, "STEPS", steps)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setenv("LOGS", str(tmp_path))
    return Processes(tmp_path, {})


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_is_asked_first_and_its_words_are_kept(programs):
    programs.start("a", "polite")
    wait_until(lambda: programs.tail_of("a") == "up")
    assert programs.status("a") is None
    assert programs.stop() == []
    assert programs.status("a") == 0
    assert programs.tail_of("a") == "up\nbye"


def test_a_process_can_be_asked_where_a_shell_started_us_in_the_background(programs):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        programs.start("a", "polite")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: programs.tail_of("a") == "up")
    assert programs.stop() == []
    assert programs.status("a") == 0


def test_a_process_that_does_not_listen_is_ended_and_named(programs, monkeypatch):
    monkeypatch.setattr(Processes, "STEPS", ((signal.SIGINT, 0.5), *Processes.STEPS[1:]))
    programs.start("a", "deaf")
    wait_until(lambda: programs.tail_of("a") == "up")
    assert programs.stop() == ["a"]
    assert programs.status("a") == -signal.SIGTERM


def test_a_failure_can_be_told_with_its_last_words(programs):
    programs.start("a", "failing")
    wait_until(lambda: programs.status("a") is not None)
    assert programs.status("a") == 1
    assert programs.tail_of("a") == "no camera"


def test_the_first_error_of_a_node_is_found_in_its_log(programs):
    programs.start("a", "polite")
    wait_until(lambda: programs.tail_of("a") == "up")
    assert programs.error_of("a") is None and programs.error_of("b") is None
    with programs.log_of("a").open("a") as log:
        log.write("[WARN] [1.5] [n]: [ERROR] not yet\n[ERROR] [1.6] [n]: no model\nTraceback\n")
        log.write("[ERROR] [1.7] [n]: and so on\n")
    assert programs.error_of("a") == "no model"
    programs.stop()


def test_leaving_the_block_leaves_no_process_not_even_a_grandchild(programs):
    with programs:
        programs.start("a", "mother")
        wait_until(lambda: programs.tail_of("a"))
        grandchild = int(programs.tail_of("a").split()[0])
    wait_until(lambda: not alive(grandchild))


def test_children_die_with_a_parent_that_was_killed(programs):
    command = [sys.executable, "-m", "killed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        wait_until(lambda: programs.tail_of("orphan") == "up")
        parent.kill()
    wait_until(lambda: not alive(child))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGHUP),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_a_second_signal_while_a_process_is_being_ended_leaves_none_behind(programs, first, second):
    done = subprocess.run(
        [sys.executable, "-m", "impatient", str(int(first)), str(int(second))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    pid, words = done.stdout.splitlines()
    assert not alive(int(pid))
    assert words == f"interrupted {-signal.SIGTERM}"
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_is_not_there_is_an_error_of_the_system(programs):
    with pytest.raises(OSError):
        programs.run("a", ["/nowhere/program"])


def test_signals_are_handled_as_before_afterwards():
    from stream_vlm_ros.processes.children import ENDING_SIGNALS, signals_as_ctrl_c

    before = [signal.getsignal(number) for number in ENDING_SIGNALS]
    with pytest.raises(KeyboardInterrupt), signals_as_ctrl_c():
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in ENDING_SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_import_that_a_signal_meets_comes_to_its_end_first(tmp_path, monkeypatch, number):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"met_by_{number.name.lower()}"
    (tmp_path / f"{name}.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\nwhole = True\n"
    )
    with pytest.raises(KeyboardInterrupt), signals_as_ctrl_c():
        module = __import__(name)
        time.sleep(10)
    assert module.whole
    del sys.modules[name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_is_told_to_end_twice_still_gives_everything_back(number):
    steps = []

    async def work():
        try:
            signal.raise_signal(number)
            await asyncio.sleep(60)
        finally:
            giving_back = asyncio.ensure_future(asyncio.sleep(0.01, steps.append("began")))
            signal.raise_signal(number)  # the impatient user's second Ctrl-C
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(giving_back)
            await giving_back
            steps.append("ended")

    with signals_as_ctrl_c(), pytest.raises(KeyboardInterrupt):
        run_until_told(work())
    assert steps == ["began", "ended"]
