"""The matcher of a gallery, kept up to date with its file, whoever changes or replaces it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from confit_runtime.arrays import Floats, Indices
from confit_runtime.errors import GalleryBusyError, GalleryError, GalleryModelError, UsageError
from confit_runtime.gallery_file import FileVersion, GalleryFile, path_exists
from confit_runtime.gallery_tables import Binding, damaged_error
from confit_runtime.matcher import Levels, Matcher
from confit_runtime.model import Model
from confit_runtime.names import check_new_name, clean_name
from confit_runtime.prints import (
    StoredPrints,
    list_prints,
    owner_indices,
    read_calibrated,
    read_prints,
    refresh_prints,
)
from confit_runtime.search import IncrementalSearch, Search

log = logging.getLogger(__name__)

LISTENING_TIMEOUT_S = 0.1  # how long to wait for a change by another program or thread: live sound does not wait


class ReloadingMatcher:
    """The current prints of a gallery's file, to match against.

    Once they have been read, nobody waits for them: while the file cannot be read, the previous ones stay, and the log
    says why.
    """

    def __init__(
        self, file: GalleryFile, model: Model, levels: Levels, read_binding: Callable[[sqlite3.Connection], Binding]
    ) -> None:
        """`read_binding` returns what the prints are of, and raises GalleryModelError if that is not `model`."""
        self._file, self._model, self._levels, self._read_binding = file, model, levels, read_binding
        self._matcher: Matcher | None = None
        self._read_names: dict[int, str] = {}  # by id: the names that the matcher was made of
        self._stored: tuple[StoredPrints, StoredPrints] | None = (
            None  # the names' prints and the negative ones that it was made of
        )
        self._last_search: Search | None = None  # the search of the former
        self._seen_version: FileVersion | None = (
            None  # the state of the file when it was read; None: it has changed since
        )
        self._reload_pending = False  # another file is at the path and was not read yet
        self._missing = False  # there is no file at the path
        self._last_warning = ""  # the last message in the log

    def invalidate(self) -> None:
        """Record that this process changed the gallery."""
        self._seen_version = None

    def current(self) -> Matcher:
        """The matcher: the same object for as long as nothing changes; without names if the file is gone.

        Raises GalleryError.
        """
        matcher, lock = self._matcher, self._file.lock
        if lock.acquire(timeout=-1 if matcher is None else LISTENING_TIMEOUT_S):
            try:
                matcher = self._load_first() if self._matcher is None else self._refresh(self._matcher)
            finally:
                lock.release()
        assert matcher is not None  # without a matcher, the lock was waited for
        return matcher

    def _load_first(self) -> Matcher:
        with self._file.moment() as db:
            look = self._file.version(db)  # before reading: anything written over it meanwhile is noticed next time
            self._matcher, self._seen_version = self._build_matcher(db), look
        return self._matcher

    def _refresh(self, matcher: Matcher) -> Matcher:
        """The matcher for the file's current contents if they can be read at once, otherwise `matcher`."""
        self._file.check_open()
        try:
            if path_exists(self._file.path):
                self._matcher = self._reload(matcher)
            elif not self._missing:
                log.warning("%s: no longer exists, so nobody is enrolled", self._file.path)
                self._matcher, self._missing, self._reload_pending = self._empty_matcher(), True, True
        except GalleryModelError:
            raise
        except GalleryBusyError as error:
            self._warn_once(f"{error}; until then its previous names stay in use")
        except GalleryError as error:  # a copy of the file may not be complete yet
            self._reload_pending = True
            self._warn_once(f"{error}; until it can be read, its previous names stay in use")
        return self._matcher or matcher

    def _reload(self, matcher: Matcher) -> Matcher:
        """Read the prints of the file at the path; return `matcher` if they are unchanged. Raises GalleryError.

        Inside a change by this process, which a reopened file would end, they are those of the file being changed.
        """
        changing = self._file.changing
        if self._reload_pending or not self._file.is_current:
            self._reload_pending, self._seen_version = True, None
            if not changing:
                self._file.reopen(LISTENING_TIMEOUT_S)
        with self._file.reading_with_timeout(LISTENING_TIMEOUT_S), self._file.moment() as db:
            if (look := self._file.version(db)) != self._seen_version:
                matcher, self._seen_version = self._build_matcher(db), look
        if changing:
            return matcher
        if self._reload_pending:
            log.warning("%s: was replaced; using the names of the new file", self._file.path)
        self._reload_pending, self._missing, self._last_warning = False, False, ""
        return matcher

    def _warn_once(self, message: str) -> None:
        if message != self._last_warning:  # this is called once per second
            log.warning("%s", message)
        self._last_warning = message

    def _empty_matcher(self) -> Matcher:
        self._read_names, self._stored, self._last_search = {}, None, None
        nothing = np.zeros((0, self._model.contract.embedding_dim), np.float32)
        return Matcher([], [], nothing, nothing, levels=self._levels)

    def _build_matcher(self, db: sqlite3.Connection) -> Matcher:
        """A matcher of all prints; of prints that were read before, only new ones are read.

        Raises GalleryError if they are invalid, or by now of another model.
        """
        path = self._file.path
        binding = self._read_binding(db)
        names = dict(db.execute("SELECT id, name FROM names ORDER BY id").fetchall())
        known = set(self._read_names.values())
        checked_names = [name if name in known else self._checked_name(name) for name in names.values()]
        own, negative, before = self._prints(db, binding.dim)
        matcher = Matcher(
            checked_names,
            owner_indices(path, list(names), own.owners),
            own.prints,
            self._cohort(binding),
            levels=self._levels if binding.kind == "sound" else replace(self._levels, stream_threshold=None),
            search=self._search(own, before),
            vetoed=owner_indices(path, list(names), negative.owners),
            vetoes=negative.prints,
            calibrated={name: one.threshold for name, one in read_calibrated(path, db).items()},
        )
        self._read_names, self._stored, self._last_search = names, (own, negative), matcher.search
        return matcher

    def _prints(self, db: sqlite3.Connection, dim: int) -> tuple[StoredPrints, StoredPrints, Indices]:
        """The names' prints, the negative ones, and the index of each of the former among those read before, or -1."""
        path = self._file.path
        if self._stored is None:
            own, negative = (read_prints(path, db, dim, negative=sign) for sign in (False, True))
            return own, negative, np.full(len(own.ids), -1)
        listed = list_prints(path, db, dim)
        (own, before), (negative, _) = (
            refresh_prints(path, db, dim, listed, held, negative=sign)
            for held, sign in zip(self._stored, (False, True), strict=True)
        )
        return own, negative, before

    def _search(self, own: StoredPrints, before: Indices) -> Search | None:
        """The search of the prints read before, brought up to date; None: compare with all prints."""
        if self._stored is None or self._last_search is None:
            return None
        rows = np.full(len(self._stored[0].ids), -1)
        rows[before[before >= 0]] = np.flatnonzero(before >= 0)
        return IncrementalSearch.updated(self._last_search, rows, own.prints)

    def _cohort(self, binding: Binding) -> Floats:
        """Embeddings of what is not enrolled: the model's own sounds and, for sounds, quiet rooms."""
        cohort = self._model.cohort
        return np.concatenate([cohort, self._model.quiet]) if binding.kind == "sound" else cohort

    def _checked_name(self, name: object) -> str:
        """A name to be used in answers. Raises GalleryError for one that cannot be enrolled."""
        path = self._file.path
        with suppress(UsageError):
            if isinstance(name, str) and clean_name(name) == name:
                try:
                    return check_new_name(name)
                except UsageError as error:
                    again = f"rename it with `confit-edge gallery rename`, or remove it (--gallery {path})"
                    raise GalleryError(
                        f"{path}: contains a name that cannot be used as an answer ({error}): {again}"
                    ) from error
        raise damaged_error(path)
