# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One replay from its source to its report: runs, progress, what is kept for the next time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import TextColumn

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import bytes_text, printable
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError, SourceNotFoundError, StreamVlmError
from stream_vlm_ros.factory import card_of, describe_model, load_engine
from stream_vlm_ros.owned import NotOursError, check, held
from stream_vlm_ros.progress import TimeLeft, make_bar
from stream_vlm_ros.sources import Frame, Source, open_source, without_secrets

from .feeding import loaded_until
from .journal import Journal, JournalError, fingerprint
from .live_topic import LiveTopic
from .memories import RunMemory, check_free
from .questions import QuestionSet
from .records import AnswerRecord
from .rendering import noting, write_report
from .report import KIND, WRITES, build_report, is_report
from .runner import Pictures, Replay, Silence
from .session_bag import BAG, SessionBag
from .settings import as_reported
from .thumbnails import THUMBNAILS, Thumbnails

JOURNAL = "journal.jsonl"
SLOW_TO_READ = 1 << 30  # bytes


@dataclass
class ReplayJob:
    """What is replayed, asked and measured, and where the report goes.

    ``out`` is taken if it holds nothing that would be written over, or was made by a replay;
    everything else is left as it is, and the job is refused.

    Args:
        spec: the source, as ``open_source`` takes it; ``options`` go to it.
        questions: what is asked.
        settings: one run for each.
        out: the report's folder.
        resume: take over the answers of a replay that was interrupted, if nothing has changed.
        bag: write a bag of each run next to the report.
        make_engine: builds the engine of a configuration.
        run_live: runs a configuration through the node over DDS, at the source's own pace:
            ``live.realtime.realtime_run``. Without it the loop is closed.
        attach: with ``run_live``, the name of a node that runs already.
        play: with ``attach``, the command that plays the source.
        command: the arguments of the command line, for the report.
        console: where progress is shown, on a terminal.
    """

    spec: str
    questions: QuestionSet
    settings: Sequence[Settings]
    out: Path
    options: dict[str, Any] = field(default_factory=dict)
    resume: bool = True
    bag: bool = False
    run_live: Callable[..., dict[str, Any]] | None = None
    attach: str | None = None
    play: str | None = None
    make_engine: Callable[[Settings], Any] | None = None
    command: Sequence[str] = ()
    console: Console | None = None

    def __post_init__(self) -> None:
        names = [settings.title for settings in self.settings]
        if len(set(names)) < len(names):
            raise InvalidParameterError(f"Two runs have the same name: {', '.join(names)}.")
        for place in (self.out, *self.out.parents):
            if place.exists() and not place.is_dir():
                raise InvalidParameterError(
                    f"--out is {self.out}, but {place} is a file: name a folder for the report."
                )
        self.interrupted = False
        self.failed: dict[str, str] = {}  # what could not be written, and why
        self._make = self.make_engine or load_engine
        if self.attach and self.run_live is None:
            raise InvalidParameterError("attach is for a replay in real time: give run_live.")
        if self.play and not self.attach:
            raise InvalidParameterError("--play needs --attach, which names the node to play to.")
        if self.realtime and any(settings.token_logprobs for settings in self.settings):
            raise InvalidParameterError(
                "--token-logprobs works only in the closed loop: a node's answers do not tell them."
            )
        if self.realtime and self.bag:
            raise InvalidParameterError(
                "--bag works only in the closed loop; in real time use ros2 bag record."
            )
        self._check_memories()
        self._check_places()

    def _check_memories(self) -> None:
        """Refuse what could not save or load its memory, before anything is replayed."""
        saved = [settings.save_memory for settings in self.settings if settings.save_memory]
        loads = any(settings.load_memory for settings in self.settings)
        if self.realtime and (saved or loads):
            raise InvalidParameterError(
                "--load-memory and --save-memory are for the closed loop: a node has ~/load_memory "
                "and ~/save_memory."
            )
        stores = [settings.frame_store for settings in self.settings if settings.frame_store]
        if len(set(stores)) < len(stores):
            raise InvalidParameterError(
                f"Two runs keep their frames in {stores[0]}: name another folder for one of them, "
                "or none, as in --compare NAME:frame_store=,history=never."
            )
        if len(set(saved)) < len(saved):
            raise InvalidParameterError(
                f"Two runs save their memory as {saved[0]}: give save_memory to one of them, as in "
                "--engine streaming,save_memory=FILE."
            )

    @property
    def realtime(self) -> bool:
        """Whether it is replayed in real time."""
        return self.run_live is not None

    @property
    def _bags(self) -> list[Path]:
        """Where the bags go, one a run."""
        count = len(self.settings) if self.bag else 0
        return [self.out / ("bag" if n == 0 else f"bag_{n + 1}") for n in range(count)]

    def _check_places(self) -> None:
        """Refuse to write over what no replay has made, and over what is replayed itself."""
        check(self.out, KIND, WRITES, known=is_report, link=True)
        pictures = self.out / THUMBNAILS
        if pictures.is_symlink() or (pictures.exists() and not pictures.is_dir()):
            raise NotOursError(f"{pictures} is not a folder of this program: move it away.")
        for path in (self.out / name for name in WRITES):
            if path.exists() and not path.is_file() and path != pictures:
                raise NotOursError(f"{path} is a folder, a pipe or a device: move it away.")
        written = [pictures, *(self.out / name for name in WRITES), *self._bags]
        inputs = [Path(os.path.expanduser(self.spec)), Path(self.questions.path)]
        inputs += [Path(os.path.expanduser(s.model_path)) for s in self.settings if s.model_path]
        for path in filter(os.path.exists, inputs):
            real = path.resolve()
            if self.out.exists() and path.is_dir() and os.path.samefile(path, self.out):
                raise NotOursError(f"--out is {path}, which is an input: name another folder.")
            for target in written:
                if target.resolve() in (real, *real.parents):
                    raise NotOursError(
                        f"{target} would be overwritten, but {path} is an input: name another "
                        "--out."
                    )
        for folder in self._bags:
            check(folder, BAG)

    def run(self) -> dict[str, Any]:
        """Replay, and write the report; the report. After Ctrl-C it is partial, and
        ``interrupted`` is true.

        Raises what opening the source raises; an error in the middle of a run ends that run and
        stands in the report.
        """
        begin = time.perf_counter()
        for settings in self.settings:
            if settings.save_memory:
                check_free(settings.save_memory)
            loaded_until(settings)
        source = self._open(self.settings[0])  # what cannot be opened ends it here, before a model
        if source.endless:
            raise InvalidParameterError(
                f"{without_secrets(self.spec)} has no end: use --end to say where to stop."
            )
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.out, KIND))
            except OSError as error:
                raise InvalidParameterError(f"--out {self.out} cannot be used: {error}") from error
            return self._run_all(source, begin)

    def _run_all(self, source: Source, begin: float) -> dict[str, Any]:
        # What comes live is not the same the next time.
        journal = Journal(self.out / JOURNAL, self.resume and not source.live)
        runs: list[dict[str, Any]] = []
        with _Bar(self.console) as bar:
            digest = self._digest(journal, bar)
            for number, settings in enumerate(self.settings):
                source = self._open(settings)
                with closing(RunMemory(settings, self._make)) as memory:
                    runs.append(
                        self._run_in_real_time(settings, source, journal, bar)
                        if self.realtime
                        else self._run(number, settings, memory, source, journal, bar)
                    )
                path = runs[-1]["settings"]["model_path"]  # of the node that was asked, if any
                card = card_of(dataclasses.replace(settings, model_path=path))
                runs[-1]["model"] = {"name": str(card), **runs[-1].get("model", {})}
                warning = card.warning(source.name)
                if warning and self.make_engine is None and self.attach is None:
                    told = runs[-1]["source"]
                    runs[-1]["source"] = told | {"notes": [*told["notes"], f"{warning}."]}
                if self.interrupted or runs[-1].get("error", {}).get("code") == JournalError.code:
                    break
        journal.close()
        report = build_report(
            mode="realtime" if self.realtime else "closed_loop",
            source=self._describe(source) | {"digest": digest},
            questions=describe_questions(self.questions),
            runs=runs,
            complete=all(run["complete"] for run in runs) and not self.interrupted,
            wall=time.perf_counter() - begin,
            command=self.command,
        )
        self.failed |= write_report(report, self.out)
        return report

    def _run(
        self,
        number: int,
        settings: Settings,
        memory: RunMemory,
        source: Source,
        journal: Journal,
        bar: _Bar,
    ) -> dict[str, Any]:
        key = fingerprint(
            as_reported(settings) | {"name": ""}, self._identity(), self.questions.digest
        )
        done = journal.run(key)
        if done is not None and not self.bag and not settings.save_memory:
            bar.say(f"{settings.title}: taken from the journal; --fresh runs it again")
            return done | {"name": settings.title, "settings": as_reported(settings)}
        if count := journal.answered(key):
            bar.say(f"{settings.title}: {count} answers taken from the journal")
        with ExitStack() as stack:
            thumbnails = Thumbnails(
                self.out,
                number,
                self.questions.questions,
                lambda record: journal.keep_answer(key, record),
                self.failed,
            )
            listeners: list[Any] = [thumbnails, bar]
            if self.bag:
                folder = self._bags[number]
                name = f"{folder.name}/"
                listeners.append(
                    stack.enter_context(_View(lambda: SessionBag(folder), name, self.failed))
                )
            replay = Replay(
                settings,
                self.questions,
                memory.engine,
                lambda ask_id: journal.answer(key, ask_id),
                _All(listeners),
                self.options.get("start") or 0.0,
                self.options.get("end"),
                self._describe_model,
            )
            ends = [t for t in (source.duration, self.options.get("end")) if t is not None]
            bar.start(settings.title, min(ends) if ends else None)
            try:
                run = replay.run(source)
            except KeyboardInterrupt:
                self.interrupted = True
                return replay.result(source)
            except StreamVlmError as error:
                if not replay.streams:
                    raise  # nothing was done yet: the model, or a setting
                failed = {"error": {"code": error.code, "message": str(error)}}
                return replay.result(source) | failed
        bar.finish()
        self._keep_run(journal, key, run)
        if settings.save_memory:
            with noting(settings.save_memory, self.failed):
                memory.save()
        return run

    def _describe_model(self, settings: Settings) -> dict[str, Any]:
        """What answered; nothing of an engine that is not of our making."""
        return describe_model(settings) if self.make_engine is None else {}

    def _keep_run(self, journal: Journal, key: str, run: dict[str, Any]) -> None:
        with noting(JOURNAL, self.failed):  # the answers are in it, or the report can hold them
            journal.keep_run(key, run)

    def _run_in_real_time(
        self, settings: Settings, source: Source, journal: Journal, bar: _Bar
    ) -> dict[str, Any]:
        end = self.options.get("end") or source.duration
        seconds = f"{end - (self.options.get('start') or 0.0):.0f} s" if end else "until its end"
        if self.attach is None:
            doing = f"playing {source.name} in real time, {seconds}"
        elif self.play:
            doing = f"asking {self.attach}, {seconds}, while this plays: {self.play}"
        else:
            doing = f"asking {self.attach} for {seconds} from now on; nothing is played from here"
        bar.say(f"{settings.title}: {doing}")
        bar.start(settings.title, end)
        whole = {key: value for key, value in self.options.items() if key != "fps"}
        whole["max_decoded_megapixels"] = settings.max_decoded_megapixels
        assert self.run_live is not None
        run = self.run_live(
            settings, self.questions, self.spec, whole, source, self.attach, self.play, bar.show
        )
        self.interrupted = not run["complete"]
        if run["complete"]:
            bar.finish()
        key = fingerprint(
            "real time", as_reported(settings), self._identity(), self.questions.digest
        )
        self._keep_run(journal, key, run)  # the node will not say it twice
        return run

    def _open(self, settings: Settings) -> Source:
        end = self.options.get("end")
        try:
            return open_source(
                self.spec,
                fps=settings.sample_fps or None,
                max_decoded_megapixels=settings.max_decoded_megapixels,
                **self.options,
            )
        except SourceNotFoundError as error:
            if self.attach is None:
                raise
            if end is not None and LiveTopic.is_meant(self.spec):
                return LiveTopic(self.spec, end)
            command = f"--questions {self.questions.path.name} {{}}--attach {self.attach}"
            topic = "/camera/image_raw"
            raise SourceNotFoundError(
                f"{error} With --attach the source is what that node is shown. A recording: "
                f"stream-vlm replay drive {command.format(f'--topic {topic} ')} "
                '--play "ros2 bag play drive --clock 100 --delay 2"; or the topic of a camera: '
                f"stream-vlm replay {topic} {command.format('')} --end 60"
            ) from error

    def _digest(self, journal: Journal, bar: _Bar) -> str | None:
        """SHA-256 of a source's file, or of the list of them that sha256sum prints for a folder's;
        None for what is no file. What the journal knows of the same files is not read again."""
        path = Path(os.path.expanduser(self.spec))
        files = sorted(path.glob("[!.]*")) if path.is_dir() else [path]
        files = [file for file in files if file.is_file()]
        if not files:
            return None
        key = fingerprint("digest", self._identity())
        if (known := journal.run(key)) is not None:
            return known["digest"]
        size = sum(file.stat().st_size for file in files)
        if size > SLOW_TO_READ:
            bar.say(f"reading {path.name} ({bytes_text(size)}) for its digest")
        try:
            sums = {file.name: sha256_of(file) for file in files}
        except OSError:
            return None  # what can be read of it is replayed, and its damage noted
        listed = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        told = hashlib.sha256(os.fsencode(listed)).hexdigest()
        digest = told if path.is_dir() else sums[path.name]
        self._keep_run(journal, key, {"digest": digest})
        return digest

    def _identity(self) -> dict[str, Any]:
        """What tells whether the source is still the same."""
        path = Path(os.path.expanduser(self.spec))
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        files += [Path(os.path.expanduser(s.load_memory)) for s in self.settings if s.load_memory]
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
        return {"spec": self.spec, "options": self.options, "files": stats}

    def _describe(self, source: Source) -> dict[str, Any]:
        return {
            "name": source.name,
            "kind": type(source).__name__,
            "options": {k: v for k, v in self.options.items() if v is not None},
            "duration": source.duration,
            "rate": source.rate,
            "size": list(source.size) if source.size else None,
        }


def describe_questions(questions: QuestionSet) -> dict[str, Any]:
    """A question set's part of the report."""
    return {
        "file": questions.path.name,
        "title": questions.title,
        "digest": questions.digest,
        "count": len(questions.questions),
        "extra": questions.extra,
    }


def sha256_of(file: Path) -> str:
    """As sha256sum prints it."""
    found = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            found.update(block)
    return found.hexdigest()


class _All(Silence):
    """Tells several listeners."""

    def __init__(self, listeners: Sequence[Any]) -> None:
        self._listeners = listeners

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None:
        for listener in self._listeners:
            listener.on_chunk(camera, offset_ns, frames, entry)

    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        for listener in self._listeners:
            listener.on_answer(record, image, pictures)


class _View(Silence):
    """A listener whose failure is noted and ends it alone: the answers do not depend on it.

    Args:
        make: gives the listener, a context manager.
        name: what is noted as failed.
    """

    def __init__(self, make: Callable[[], Any], name: str, failed: dict[str, str]) -> None:
        self._make, self._name, self._failed = make, name, failed
        self._stack = ExitStack()
        self._listener: Any = None

    @property
    def _works(self) -> bool:
        return self._name not in self._failed

    def __enter__(self) -> _View:
        with noting(self._name, self._failed):
            self._listener = self._stack.enter_context(self._make())
        return self

    def __exit__(self, *exception: Any) -> None:
        with noting(self._name, self._failed):
            self._stack.__exit__(*exception)

    def _tell(self, told: Callable[[], None]) -> None:
        if not self._works:
            return
        with noting(self._name, self._failed):
            try:
                told()
            except Exception as error:
                self._stack.__exit__(type(error), error, error.__traceback__)
                raise

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None:
        self._tell(lambda: self._listener.on_chunk(camera, offset_ns, frames, entry))

    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        self._tell(lambda: self._listener.on_answer(record, image, pictures))


class _Bar(Silence):
    """Progress over the source's seconds with the time left; on terminals only."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        done = TextColumn("{task.completed:.0f} s, {task.fields[answers]} answers")
        self._shown = make_bar(console, done, TimeLeft(), transient=False)
        self._task: Any = None
        self._answers = 0

    def __enter__(self) -> _Bar:
        self._shown.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._shown.stop()

    def say(self, text: str) -> None:
        if self._console is not None:
            text = printable(text)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, name: str, seconds: float | None) -> None:
        self._answers = 0
        self._task = self._shown.add_task(printable(name), total=seconds, answers=0)

    def finish(self) -> None:
        task = self._shown.tasks[-1]
        self._shown.update(self._task, completed=task.total or task.completed)

    def show(self, seconds: float, answers: int) -> None:
        self._shown.update(self._task, completed=seconds, answers=answers)

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None:
        self._shown.update(self._task, completed=offset_ns / SECOND)

    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        self._answers += 1
        self._shown.update(self._task, answers=self._answers)
