"""Taps on detections: naming who spoke, dropping known false alarms, and saving what fired."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from confit_runtime.arrays import check_count
from confit_runtime.audio import Pcm, resample
from confit_runtime.enrollment import embed_sound, to_flac
from confit_runtime.errors import UsageError
from confit_runtime.events import Detection
from confit_runtime.files import write_new_private
from confit_runtime.gallery import Gallery
from confit_runtime.listener import Tap
from confit_runtime.matcher import Match, Matcher
from confit_runtime.model import Model
from confit_runtime.names import normalise
from confit_runtime.voice_activity import remove_pauses, voiced_seconds

log = logging.getLogger(__name__)

RECENT_S, SLACK_S = 6.0, 1.0  # seconds kept at least; and a reserve, because sound arrives in chunks
MIN_VOICE_S = 0.2
MAX_TRIGGERS = 10_000  # files, a few hundred megabytes
_TRIGGER = re.compile(r"[\w.-]{1,30}-\d{8}-\d{6}-[\w.-]{0,20}-\d{4,}\.flac")  # as `SaveTap` names them
VOICE_BEFORE_S = 3.0  # how far before the end of a detection to look for a voice
# The word that fired: seconds before and after the detection's end, and by how much it may score below what a name
# needs. Chosen on the demo's validation voices: other people who speak after an enrolled one are told apart, and its
# own words are rarely dropped.
WORD_S, MIN_WORD_VOICE_S, WORD_SLACK = (0.6, 0.3), 0.1, 0.1


def lookback_s(models: Collection[Model]) -> float:
    """How many seconds a detection by one of `models` looks back: its window, and a voice before it."""
    windows = [(one.window + one.latency_samples) / one.sample_rate for one in (model.contract for model in models)]
    return max([RECENT_S, *(window + VOICE_BEFORE_S + SLACK_S for window in windows)])


class RecentAudio(Tap):
    """The last seconds of a source, at its own rate. Lost sound is kept as silence."""

    def __init__(self, seconds: float = RECENT_S) -> None:
        self._seconds = seconds
        self._clear()

    def _clear(self) -> None:
        self._chunks: deque[Pcm] = deque()  # the first one may be older than requested
        self._samples = 0  # total in `_chunks`
        self._end = 0  # the source's sample after the last one held
        self.rate = 0

    def begin(self, name: str, rate: int) -> None:
        self._clear()
        self.rate = rate

    def hear(self, pcm: Pcm, rate: int) -> None:
        self._append(pcm)

    def skip(self, samples: int) -> None:
        self._append(np.zeros(min(samples, round(self._seconds * self.rate)), np.float32), samples)

    def _append(self, pcm: Pcm, samples: int | None = None) -> None:
        self._chunks.append(pcm.copy())  # the caller may reuse the array it lent
        self._samples += len(pcm)
        self._end += len(pcm) if samples is None else samples
        while self._samples - len(self._chunks[0]) >= self._seconds * self.rate:
            self._samples -= len(self._chunks.popleft())

    def between(self, start: int, end: int) -> Pcm:
        """Samples `start..end` of the source, as far as they are kept."""
        most = round(self._seconds * self.rate)
        held = np.concatenate([np.zeros(0, np.float32), *self._chunks])[-most:]
        first = self._end - len(held)
        return held[max(0, start - first) : max(0, end - first)]


class SpeakerTap(RecentAudio):
    """Names who spoke at each detection, with a speaker model and its gallery.

    `only` maps the name of a model to the enrolled names whose words alone are reported among its detections: words of
    others, and sounds that nobody speaks, such as an alarm, are dropped. All detections of models not in `only` are
    reported.

    The speaker is judged by the voice in the three seconds up to the detection's end, because one word alone is too
    short to recognise a voice. That speaker must also have said the word: the word alone must be nearest to the same
    name, and within `WORD_SLACK` of what the name needs. Otherwise, and if there is too little voice or no enrolled
    name is near enough, the speaker is None.

    The gallery is read again when another program changes it. `models` are those whose detections are named; windows
    of many seconds need more sound to be kept.
    """

    def __init__(
        self,
        model: Model,
        gallery: Gallery,
        only: Mapping[str, Collection[str]] | None = None,
        models: Collection[Model] = (),
    ) -> None:
        super().__init__(lookback_s(models))
        self._model, self._gallery = model, gallery
        self._only = {of: set(map(normalise, names)) for of, names in (only or {}).items()}
        self._warned: set[str] = set()

    def judge(self, detection: Detection) -> Detection | None:
        speaker = self._speaker(detection)
        only = self._only.get(detection.model)
        if only is not None and speaker not in only:
            self._warn_if_none_enrolled(detection.model, only)
            return None
        return dataclasses.replace(detection, speaker=speaker)

    def _warn_if_none_enrolled(self, of: str, only: set[str]) -> None:
        """Log once if none of the names in `only` is enrolled any more (removed or renamed), so that everything is dropped."""
        if of not in self._warned and not only.intersection(self._gallery.matcher.enrolled):
            self._warned.add(of)
            names = ", ".join(sorted(only))
            log.warning(
                "%s: %s is no longer enrolled, so no detections of %s are reported", self._gallery.path, names, of
            )

    def _speaker(self, detection: Detection) -> str | None:
        matcher = self._gallery.matcher
        speaker = self._match(matcher, detection, VOICE_BEFORE_S, 0.0, MIN_VOICE_S)
        if speaker is None or speaker.name is None:
            return None
        word = self._match(matcher, detection, *WORD_S, MIN_WORD_VOICE_S)
        if word is None or word.nearest != speaker.name or word.score < word.threshold - WORD_SLACK:
            return None
        return speaker.name

    def _match(
        self, matcher: Matcher, detection: Detection, before_s: float, after_s: float, least_s: float
    ) -> Match | None:
        """Match the voice from `before_s` before a detection's end (or from its start) to `after_s` after it.

        None if there is less voice than `least_s`.
        """
        first = min(detection.start_sample, detection.end_sample - round(before_s * self.rate))
        heard = self.between(first, detection.end_sample + round(after_s * self.rate))
        if voiced_seconds(heard, self.rate) < least_s:
            return None
        return matcher.match(self._model.embed(remove_pauses(heard, self.rate), self.rate))


class VetoTap(RecentAudio):
    """Drops detections of labels whose sound is like the label's negative prints (`enroll --negative`).

    Enrolled names pass: their stream compares every row with the name's negative prints.
    """

    def __init__(self, model: Model, gallery: Gallery) -> None:
        super().__init__(lookback_s([model]))
        self._model, self._gallery = model, gallery

    def judge(self, detection: Detection) -> Detection | None:
        if detection.enrolled or detection.model != self._model.name:
            return detection
        if not (matcher := self._gallery.matcher).has_vetoes:
            return detection
        sound = trigger_audio(self, detection, self._model)
        if not len(sound):
            return detection
        embedding = embed_sound(self._model, resample(sound, self.rate, self._model.contract.sample_rate))
        return None if matcher.vetoes(detection.label, embedding) else detection


class SaveTap(RecentAudio):
    """Saves the sound of each detection as FLAC in a folder, to listen to, to enroll, or to enroll as negative.

    If the folder has more than `max_files`, the oldest are removed, but only files that some `SaveTap` named: other files
    are left alone. A file that cannot be removed (another user's, in a shared folder) stays. If a file cannot be
    removed or written, the log says so once, and listening continues. Raises UsageError for a detection by none of
    `models`.
    """

    def __init__(self, folder: Path, models: Collection[Model], *, max_files: int = MAX_TRIGGERS) -> None:
        """Make the folder if it does not exist.

        Raises OSError if the folder cannot be made or written, UsageError if `max_files` is not a valid number of files.
        """
        super().__init__(lookback_s(models))
        self._folder, self._models = folder, {model.name: model for model in models}
        self._source, self._started_at, self._count = "", time.strftime("%Y%m%d-%H%M%S"), 0
        self._failing = False
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        self._max_files, self._saved = (
            check_count(max_files, "the number of triggers to keep", 1),
            deque(_triggers(folder)),
        )
        self._undeletable: set[str] = set()  # files that could not be removed; not in `_saved`

    def begin(self, name: str, rate: int) -> None:
        super().begin(name, rate)
        self._source = Path(name).stem

    def judge(self, detection: Detection) -> Detection:
        if detection.model not in self._models:
            known = ", ".join(self._models) or "none"
            raise UsageError(
                f"cannot save a trigger of {detection.model}: this SaveTap was made for other models ({known})"
            )
        data = to_flac(trigger_audio(self, detection, self._models[detection.model]), self.rate)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = self._write(detection.label, data)
        except OSError as error:
            if not self._failing:
                log.warning("%s: triggers cannot be saved (%s); listening continues", self._folder, error.strerror)
            self._failing = True
        else:
            self._failing = False
            self._saved.append(kept.name)
            with suppress(OSError):  # the next detection tries again
                self._drop_oldest()
        return detection

    def _drop_oldest(self) -> None:
        """Look at everything in the folder: other programs may save theirs there, and some files may have been moved away."""
        there = set(filter(_TRIGGER.fullmatch, os.listdir(self._folder)))
        self._undeletable &= there
        if set(self._saved) != there - self._undeletable:
            self._saved = deque(name for name in _triggers(self._folder) if name not in self._undeletable)
        while len(self._saved) > self._max_files:
            self._remove(self._saved.popleft())

    def _remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            if not self._undeletable:
                most = f"so the folder keeps more than {self._max_files} triggers"
                log.warning("%s: cannot be removed (%s), %s", self._folder / name, error.strerror, most)
            self._undeletable.add(name)

    def _write(self, label: str, data: bytes) -> Path:
        """Write a new file, named after what fired, when the program began, the source, and the next number that is free."""
        label, source = (
            re.sub(r"[^\w.-]+", "_", text)[:longest] for text, longest in ((label, 30), (self._source, 20))
        )
        while True:
            self._count += 1
            path = self._folder / f"{label}-{self._started_at}-{source}-{self._count:04}.flac"
            with suppress(FileExistsError):
                write_new_private(path, data)
                return path


def _triggers(folder: Path) -> list[str]:
    """The names of what any `SaveTap` saved in a folder before, oldest first."""
    found: list[tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _TRIGGER.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    return [name for _, name in sorted(found)]


def trigger_audio(recent: RecentAudio, detection: Detection, model: Model) -> Pcm:
    """The sound of a detection: its whole window, and everything since its start.

    The detection ends with the last hop in the middle of that window.
    """
    contract = model.contract
    ahead = max(0, contract.latency_samples - contract.hop // 2)  # samples after its end, which is the end of the hop
    window, ahead = (round(samples * recent.rate / contract.sample_rate) for samples in (contract.window, ahead))
    last = detection.end_sample + ahead
    return recent.between(min(detection.start_sample, last - window), last)
