"""Taps on what is detected: who spoke, what was a false alarm before, and keeping what fired."""

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

from confit_runtime.arrays import whole
from confit_runtime.audio import Pcm, resample
from confit_runtime.enrollment import embed_sound, to_flac
from confit_runtime.errors import UsageError
from confit_runtime.events import Detection
from confit_runtime.files import OURS, write_new
from confit_runtime.gallery import Gallery
from confit_runtime.listener import Tap
from confit_runtime.matcher import Match, Matcher
from confit_runtime.model import Model
from confit_runtime.names import plain
from confit_runtime.voiced import cut_to_voice, voiced_seconds

log = logging.getLogger(__name__)

RECENT_S, SLACK_S = 6.0, 1.0  # that are held at least; and more than is needed, for sound comes in pieces
SHORTEST_WORD_S = 0.2
MOST_TRIGGERS = 10_000  # files, some hundred megabytes
_TRIGGER = re.compile(r"[\w.-]{1,30}-\d{8}-\d{6}-[\w.-]{0,20}-\d{4,}\.flac")  # as `SaveTap` names them
VOICE_BEFORE_S = 3.0  # how far back before the end of a detection a voice is looked for
# of the word that fired, before the detection's end and after; and what it may score less than a name needs. Chosen on
# the demo's validation voices: others who speak after an enrolled one are told from it, its own words rarely dropped
WORD_S, LEAST_OF_WORD_S, WORD_SLACK = (0.6, 0.3), 0.1, 0.1


def reach_s(models: Collection[Model]) -> float:
    """How many seconds a detection by one of `models` looks back on: its window, and a voice before."""
    windows = [(one.window + one.latency_samples) / one.sample_rate for one in (model.contract for model in models)]
    return max([RECENT_S, *(window + VOICE_BEFORE_S + SLACK_S for window in windows)])


class RecentAudio(Tap):
    """The last seconds of a source, in its own rate. What was lost stands in it as silence."""

    def __init__(self, seconds: float = RECENT_S) -> None:
        self._seconds = seconds
        self._forget()

    def _forget(self) -> None:
        self._held: deque[Pcm] = deque()  # the first of them may be older than is asked for
        self._samples = 0  # in all of them
        self._end = 0  # the source's sample after the last one held
        self.rate = 0

    def begin(self, name: str, rate: int) -> None:
        self._forget()
        self.rate = rate

    def hear(self, pcm: Pcm, rate: int) -> None:
        self._append(pcm)

    def skip(self, samples: int) -> None:
        self._append(np.zeros(min(samples, round(self._seconds * self.rate)), np.float32), samples)

    def _append(self, pcm: Pcm, samples: int | None = None) -> None:
        self._held.append(pcm.copy())  # whoever lent it may use it again
        self._samples += len(pcm)
        self._end += len(pcm) if samples is None else samples
        while self._samples - len(self._held[0]) >= self._seconds * self.rate:
            self._samples -= len(self._held.popleft())

    def between(self, start: int, end: int) -> Pcm:
        """Samples `start..end` of the source, as far as they are held."""
        most = round(self._seconds * self.rate)
        held = np.concatenate([np.zeros(0, np.float32), *self._held])[-most:]
        first = self._end - len(held)
        return held[max(0, start - first) : max(0, end - first)]


class SpeakerTap(RecentAudio):
    """Names who spoke at each detection, by a speaker model and its gallery.

    `only` names, by the name of a model, whose words alone are told of what it detects: what others said is dropped, and so
    is what nobody says, such as an alarm. Of a model that is not in it everything is told.

    What is judged is the voice in the three seconds up to the detection's end, for a word alone is little to know a voice
    by. Whoever that is must have said the word, too: the word alone must be nearest to the same name, and within
    `WORD_SLACK` of what the name needs. Where it is not, where there is too little voice, or where nobody enrolled is near
    enough, the speaker is None. The gallery is read anew when another program has changed it. `models` are those whose
    detections are named: of a window of many seconds more must be held.
    """

    def __init__(
        self,
        model: Model,
        gallery: Gallery,
        only: Mapping[str, Collection[str]] | None = None,
        models: Collection[Model] = (),
    ) -> None:
        super().__init__(reach_s(models))
        self._model, self._gallery = model, gallery
        self._only = {of: set(map(plain, names)) for of, names in (only or {}).items()}
        self._told: set[str] = set()

    def judge(self, detection: Detection) -> Detection | None:
        speaker = self._speaker(detection)
        only = self._only.get(detection.model)
        if only is not None and speaker not in only:
            self._tell_where_none_can_be(detection.model, only)
            return None
        return dataclasses.replace(detection, speaker=speaker)

    def _tell_where_none_can_be(self, of: str, only: set[str]) -> None:
        """Who alone is listened to may have been removed or renamed meanwhile: then all is dropped, and the log says so once."""
        if of not in self._told and not only.intersection(self._gallery.matcher.enrolled):
            self._told.add(of)
            names = ", ".join(sorted(only))
            log.warning("%s: %s is not enrolled any more, so nothing of %s is told", self._gallery.path, names, of)

    def _speaker(self, detection: Detection) -> str | None:
        matcher = self._gallery.matcher
        spoke = self._match(matcher, detection, VOICE_BEFORE_S, 0.0, SHORTEST_WORD_S)
        if spoke is None or spoke.name is None:
            return None
        said = self._match(matcher, detection, *WORD_S, LEAST_OF_WORD_S)
        if said is None or said.nearest != spoke.name or said.score < said.threshold - WORD_SLACK:
            return None
        return spoke.name

    def _match(
        self, matcher: Matcher, detection: Detection, before_s: float, after_s: float, least_s: float
    ) -> Match | None:
        """Whose voice is heard from so long before a detection's end (or its start) until after it; None of too little."""
        first = min(detection.start_sample, detection.end_sample - round(before_s * self.rate))
        heard = self.between(first, detection.end_sample + round(after_s * self.rate))
        if voiced_seconds(heard, self.rate) < least_s:
            return None
        return matcher.match(self._model.embed(cut_to_voice(heard, self.rate), self.rate))


class VetoTap(RecentAudio):
    """Drops detections whose sound is one that was enrolled as negative of their label (`enroll --negative`)."""

    def __init__(self, model: Model, gallery: Gallery) -> None:
        super().__init__(reach_s([model]))
        self._model, self._gallery = model, gallery

    def judge(self, detection: Detection) -> Detection | None:
        if detection.model != self._model.name or not (matcher := self._gallery.matcher).has_vetoes:
            return detection
        sound = trigger(self, detection, self._model)
        if not len(sound):
            return detection
        embedding = embed_sound(self._model, resample(sound, self.rate, self._model.contract.sample_rate))
        return None if matcher.vetoes(detection.label, embedding) else detection


class SaveTap(RecentAudio):
    """Keeps the sound of each detection as FLAC in a folder, to be listened to, enrolled or enrolled as negative.

    Of more than `most` in the folder the oldest go, of those that a `SaveTap` of whatever program named: other files are
    nobody's but their owner's. One that cannot be removed (another user's, where a folder is shared) stays beside them. Where
    one cannot be removed or written the log says so once, and listening goes on. Raises UsageError on a detection of none of
    `models`.
    """

    def __init__(self, folder: Path, models: Collection[Model], *, most: int = MOST_TRIGGERS) -> None:
        """Makes the folder where it is not there. Raises OSError when it cannot be made or written, UsageError on a `most` that
        is no number of files.
        """
        super().__init__(reach_s(models))
        self._folder, self._models = folder, {model.name: model for model in models}
        self._source, self._began, self._count = "", time.strftime("%Y%m%d-%H%M%S"), 0
        self._failing = False
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        self._most, self._kept = whole(most, "the triggers that are kept", 1), deque(_triggers(folder))
        self._staying: set[str] = set()  # what could not be removed; not in `_kept`

    def begin(self, name: str, rate: int) -> None:
        super().begin(name, rate)
        self._source = Path(name).stem

    def judge(self, detection: Detection) -> Detection:
        if detection.model not in self._models:
            known = ", ".join(self._models) or "none"
            raise UsageError(
                f"a trigger of {detection.model} cannot be kept: SaveTap was made for other models ({known})"
            )
        data = to_flac(trigger(self, detection, self._models[detection.model]), self.rate)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = self._write(detection.label, data)
        except OSError as error:
            if not self._failing:
                log.warning("%s: triggers cannot be kept (%s); listening goes on", self._folder, error.strerror)
            self._failing = True
        else:
            self._failing = False
            self._kept.append(kept.name)
            with suppress(OSError):  # the next one tries again
                self._drop_oldest()
        return detection

    def _drop_oldest(self) -> None:
        """Of all that lies there: other programs may keep theirs in the same folder, and some may have been moved away."""
        there = set(filter(_TRIGGER.fullmatch, os.listdir(self._folder)))
        self._staying &= there
        if set(self._kept) != there - self._staying:
            self._kept = deque(name for name in _triggers(self._folder) if name not in self._staying)
        while len(self._kept) > self._most:
            self._remove(self._kept.popleft())

    def _remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            if not self._staying:
                most = f"so that more than {self._most} triggers lie there"
                log.warning("%s: cannot be removed (%s), %s", self._folder / name, error.strerror, most)
            self._staying.add(name)

    def _write(self, label: str, data: bytes) -> Path:
        """Into a new file: what fired, when the program began, the source, and the next number that no other program took."""
        label, source = (
            re.sub(r"[^\w.-]+", "_", text)[:longest] for text, longest in ((label, 30), (self._source, 20))
        )
        while True:
            self._count += 1
            path = self._folder / f"{label}-{self._began}-{source}-{self._count:04}.flac"
            with suppress(FileExistsError):
                write_new(path, data, OURS)
                return path


def _triggers(folder: Path) -> list[str]:
    """The names of what `SaveTap` kept in a folder before, oldest first."""
    found: list[tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _TRIGGER.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    return [name for _, name in sorted(found)]


def trigger(recent: RecentAudio, detection: Detection, model: Model) -> Pcm:
    """The sound of a detection: the window that it was made of, in the middle of which the last hop ends it, and all since its
    start.
    """
    contract = model.contract
    ahead = max(0, contract.latency_samples - contract.hop // 2)  # of its end, which is that of the hop
    window, ahead = (round(samples * recent.rate / contract.sample_rate) for samples in (contract.window, ahead))
    last = detection.end_sample + ahead
    return recent.between(min(detection.start_sample, last - window), last)
