"""The matcher of a gallery, kept as the file is: whoever changes it, or puts another one in its place."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from confit_runtime.arrays import Floats, Places
from confit_runtime.enrollment import kind_of
from confit_runtime.errors import GalleryBusyError, GalleryError, GalleryModelError, UsageError
from confit_runtime.gallery_file import GalleryFile, Look, is_there
from confit_runtime.matcher import Levels, Matcher
from confit_runtime.migrations import Binding, damaged, index_digest
from confit_runtime.model import Model
from confit_runtime.names import clean_name, new_name
from confit_runtime.prints import Held, list_prints, places_among, read_again, read_prints
from confit_runtime.search import IndexSearch, LaterSearch, Search

log = logging.getLogger(__name__)

LISTENING_PATIENCE_S = 0.1  # for a change by another program or thread: sound does not wait


class CurrentMatcher:
    """The prints of a gallery's file as they are now, to match against.

    Once they were read, nobody waits for them: while the file cannot be read they are as they were, and the log says why.
    """

    def __init__(
        self, file: GalleryFile, model: Model, levels: Levels, admit: Callable[[sqlite3.Connection], Binding]
    ) -> None:
        """`admit` gives what the prints are of, and raises GalleryModelError where that is not `model`."""
        self._file, self._model, self._levels, self._admit = file, model, levels, admit
        self._matcher: Matcher | None = None
        self._read_names: dict[int, str] = {}  # by their ids, of which the matcher was made
        self._held: tuple[Held, Held] | None = None  # those of names and the negative ones, likewise
        self._searched: Search | None = None  # how the first are searched
        self._seen: Look | None = None  # of the file, when that was read; None: it has changed since
        self._unread = False  # another file stands at the path, and was not read yet
        self._gone = False  # none does
        self._told = ""  # what the log said last

    def outdate(self) -> None:
        """Tell that this process changed the gallery."""
        self._seen = None

    def newest(self) -> Matcher:
        """The same object for as long as nothing was changed; of nobody, where the file is gone. Raises GalleryError."""
        matcher, lock = self._matcher, self._file.lock
        if lock.acquire(timeout=-1 if matcher is None else LISTENING_PATIENCE_S):
            try:
                matcher = self._first() if self._matcher is None else self._next(self._matcher)
            finally:
                lock.release()
        assert matcher is not None  # without one the lock was waited for
        return matcher

    def _first(self) -> Matcher:
        with self._file.moment() as db:
            look = self._file.look(db)  # before it is read: what is written over it then is seen the next time
            self._matcher, self._seen = self._load(db), look
        return self._matcher

    def _next(self, matcher: Matcher) -> Matcher:
        """What the file holds now, where it can be read at once; `matcher`, where it cannot."""
        self._file.check_open()
        try:
            if is_there(self._file.path):
                self._matcher = self._read(matcher)
            elif not self._gone:
                log.warning("%s: is not there any more, so nobody is enrolled", self._file.path)
                self._matcher, self._gone, self._unread = self._nobody(), True, True
        except GalleryModelError:
            raise
        except GalleryBusyError as error:
            self._tell(f"{error}; until then its names are as they were")
        except GalleryError as error:  # a copy of it may not be written to its end yet
            self._unread = True
            self._tell(f"{error}; until it can be read its names are as they were")
        return self._matcher or matcher

    def _read(self, matcher: Matcher) -> Matcher:
        """The prints of the file that stands at the path; `matcher`, if those are its. Raises GalleryError.

        Within a change of this process, which another file would end, they are those of the file that is changed.
        """
        changing = self._file.changing
        if self._unread or not self._file.stands:
            self._unread, self._seen = True, None
            if not changing:
                self._file.reopen(LISTENING_PATIENCE_S)
        with self._file.hurried(LISTENING_PATIENCE_S), self._file.moment() as db:
            if (look := self._file.look(db)) != self._seen:
                matcher, self._seen = self._load(db), look
        if changing:
            return matcher
        if self._unread:
            log.warning("%s: was replaced; its names are those of the new file", self._file.path)
        self._unread, self._gone, self._told = False, False, ""
        return matcher

    def _tell(self, message: str) -> None:
        if message != self._told:  # it is asked once a second
            log.warning("%s", message)
        self._told = message

    def _nobody(self) -> Matcher:
        self._read_names, self._held, self._searched = {}, None, None
        nothing = np.zeros((0, self._model.contract.embedding_dim), np.float32)
        return Matcher([], [], nothing, nothing, levels=self._levels)

    def _load(self, db: sqlite3.Connection) -> Matcher:
        """All prints; of those that were read before, only what is new is read.

        Raises GalleryError where they make no sense, or are of another model by now.
        """
        path = self._file.path
        binding = self._admit(db)
        names = dict(db.execute("SELECT id, name FROM names ORDER BY id").fetchall())
        known = set(self._read_names.values())
        told = [name if name in known else self._name(name) for name in names.values()]
        own, negative, before = self._prints(db, binding.dim)
        matcher = Matcher(
            told,
            places_among(path, list(names), own.owners),
            own.prints,
            self._cohort(binding),
            levels=self._levels,
            search=self._search(own, before, index_digest(db)),
            vetoed=places_among(path, list(names), negative.owners),
            vetoes=negative.prints,
        )
        self._read_names, self._held, self._searched = names, (own, negative), matcher.search
        return matcher

    def _prints(self, db: sqlite3.Connection, dim: int) -> tuple[Held, Held, Places]:
        """Those of names, the negative ones, and where each of the first was among those that were read before, or -1."""
        path = self._file.path
        if self._held is None:
            own, negative = (read_prints(path, db, dim, negative=sign) for sign in (False, True))
            return own, negative, np.full(len(own.ids), -1)
        listed = list_prints(path, db, dim)
        (own, before), (negative, _) = (
            read_again(path, db, dim, listed, held, negative=sign)
            for held, sign in zip(self._held, (False, True), strict=True)
        )
        return own, negative, before

    def _search(self, own: Held, before: Places, digest: object) -> Search | None:
        """By the index, if there is one and it is this gallery's; None: all prints are compared.

        One that lies beside a gallery of nobody stays, for who only reads erases nothing: `enroll` does.
        """
        path = self._file.index_path
        try:
            if len(own.ids) and path.exists():
                return IndexSearch(path, own.ids, own.prints, digest)
        except GalleryError as error:
            log.warning("%s; every print is compared", error)
        if self._held is None or isinstance(self._searched, IndexSearch | None):
            return None
        rows = np.full(len(self._held[0].ids), -1)
        rows[before[before >= 0]] = np.flatnonzero(before >= 0)
        return LaterSearch.of(self._searched, rows, own.prints)

    def _cohort(self, binding: Binding) -> Floats:
        """What is not enrolled: the model's own sounds, and for sounds the quiet around them."""
        cohort = self._model.cohort
        if (binding.kind or kind_of(self._model.contract)) == "speaker":
            return cohort
        return np.concatenate([cohort, self._model.quiet])

    def _name(self, name: object) -> str:
        """A name as it is answered. Raises GalleryError on one that nobody can be enrolled under."""
        path = self._file.path
        with suppress(UsageError):
            if isinstance(name, str) and clean_name(name) == name:
                try:
                    return new_name(name)
                except UsageError as error:
                    again = f"give it another with `confit-edge gallery rename`, or remove it (--gallery {path})"
                    raise GalleryError(f"{path}: a name in it cannot be answered ({error}): {again}") from error
        raise damaged(path)
