"""The photographs of an evaluation: every file gets a row, sound or not, and is known by the digest of its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sports_ray.config import DataConfig
from sports_ray.data.csv_list import name_of, read_csv_list
from sports_ray.data.files import GONE, Files, called_image, is_pack, open_files
from sports_ray.data.inspect import FORMAT_OF
from sports_ray.data.label_sets import LabelSets, labels_of, names_in, sets_of, word_of
from sports_ray.data.listing import Listing, list_files
from sports_ray.data.pack import open_pack
from sports_ray.errors import DataError
from sports_ray.predict.digests import Digest, Progress, digests
from sports_ray.store.storage import absolute

if TYPE_CHECKING:
    import pyarrow as pa

    from sports_ray.data.manifest import Manifest

SPLITS = ("train", "val", "test")
SHOWN = 5
_Row = tuple[str, str, Digest]
"""Path, name of the class (of several: their word, empty: unknown), state of the file."""


@dataclass(frozen=True)
class Images:
    """Photographs in a fixed order."""

    root: str
    """Absolute; where relative paths start."""
    table: pa.Table
    """id (int64, 0, 1, ... in the order of paths), path (string, with '/'), label (int32, -1: unknown), sha256 (string, hex;
    empty where the file could not be read), error (string; why not, or null)."""
    notes: tuple[str, ...] = ()
    label_sets: LabelSets = ()
    """Multi-label: the classes of each label; empty: a label is the place of one class."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        return self.table.column(name).to_pylist()

    def digests(self) -> list[str]:
        return self.column("sha256")

    def content(self) -> str:
        """Hex sha256 over the files' digests in their order: all that logits depend on."""
        return hashlib.sha256("\n".join(self.digests()).encode()).hexdigest()

    def fingerprint(self) -> str:
        """Hex sha256 over path, label and digest of each: all that is written of them."""
        rows = [self.column(name) for name in ("path", "label", "sha256")]
        rows += [list(self.label_sets)] if self.label_sets else []
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def list_split(
    source: str,
    split: str,
    classes: Sequence[str],
    manifest: Manifest | None = None,
    progress: Progress | None = None,
    subset: bool = False,
    multilabel: bool = False,
) -> Images:
    """The photographs of a split of a folder or a CSV list, labelled by their place in `classes`.

    `split`: train, val or test, by any name that a list may use for it, or the name of another folder beside them, or of
    other rows of a list. A plain folder of classes counts as any split.
    `manifest`: of a run; val is then what this run held out, if that lies here (`_held_out`), and no part of train.
    `subset`: photographs of other classes are left out, with a note. `multilabel`: of a list of several classes each; there
    other classes are left out of the photographs' labels.

    Raises DataError for a split that is not there, and for classes that are not in `classes` without `subset`."""
    split = _meant(source, split)
    listing = _listing(source, split, multilabel)
    if listing.bad_rows:
        what = f"{listing.source}: {len(listing.bad_rows):,} bad rows"
        raise DataError(what, got="; ".join(listing.bad_rows[:SHOWN]), cure="mend or remove them")
    if multilabel and not listing.multilabel:
        cure = "--data LIST.csv, or leave --data out for the photographs of the first run"
        raise DataError(f"{source}: one class a photograph", want="a list of several, as in training", cure=cure)
    notes = list(_notes(listing))
    held, told = _held_out(manifest, listing, progress) if split == "val" and manifest is not None else (None, "")
    rows = _rows(listing, split) if held is None else held
    if held is not None and "val" in listing.folders:
        notes.append("val is what the first run held out, not all that is called so")
    notes += [told] if told else []
    if multilabel:
        images = _of_sets(listing, rows, classes, notes, subset, progress)
        return _without_held_out(images, manifest) if split == "train" else images
    if subset:
        known, others = {*classes, ""}, len(rows)
        rows = [row for row in rows if row[1] in known]
        if others := others - len(rows):
            notes.append(f"left out, of classes that were not trained: {others:,} photographs")
    labels = _labels([name for _, name, _ in rows], classes)
    images = _listed(str(listing.root), [row[0] for row in rows], labels, [row[2] for row in rows], progress)
    images = replace(images, notes=(*notes, *images.notes))
    return _without_held_out(images, manifest) if split == "train" else images


def manifest_split(manifest: Manifest, split: str, root: str, progress: Progress | None = None) -> Images:
    """A split as a run's manifest has it, found below `root` (or else where it lay); DataError if a file has changed."""
    root, rows = absolute(root), manifest.rows(split)
    paths, labels, before = (rows.column(name).to_pylist() for name in ("path", "label", "sha256"))
    first = next(iter(paths), "")
    where = root if open_files(root).state(first) != GONE else manifest.root
    stats = _stats(open_files(where), paths)
    images = replace(_listed(where, paths, labels, stats, progress, keep=True), label_sets=manifest.label_sets)
    changed = [path for path, then, now in zip(paths, before, images.digests(), strict=True) if then != now]
    if changed:
        raise DataError(f"{len(changed)} photographs of {split} are not those of the run", got=changed[0])
    return images


def list_images(source: str, progress: Progress | None = None) -> tuple[Images, list[str]]:
    """All images below a folder, or named by a CSV list with a column path; and what to call each: the list's id or path.

    Files that cannot be read get a row too. Raises DataError where there is nothing."""
    path = Path(source).expanduser()
    if not is_pack(source) and not path.exists():
        raise DataError("images not found", got=path, want="a folder of images, or a CSV list with a column path")
    if is_pack(source) or path.is_dir():
        files = open_files(source if is_pack(source) else str(path.resolve()))
        found = names = files.paths()
    else:
        from sports_ray.predict.csv_names import read_names

        path = path.resolve()
        named, files = read_names(path), open_files(str(path.parent))
        found, names = [row.path for row in named], [row.name for row in named]
    if not found:
        raise DataError(f"no image in {source}", want=", ".join(sorted(FORMAT_OF)))
    return _listed(files.root, found, [-1] * len(found), _stats(files, found), progress, keep=True), names


def trained_on(images: Images, manifest: Manifest) -> int:
    """How many of the photographs, byte for byte, the run was trained on."""
    known = set(manifest.rows("train").column("sha256").to_pylist())
    return sum(digest in known for digest in images.digests())


def seem_trained_on(images: Images, manifest: Manifest) -> int:
    """How many photographs the run was trained on, if the path of each is here; 0 else. With other bytes they may be others,
    but a pack encodes anew."""
    known = set(manifest.rows("train").column("path").to_pylist())
    return len(known) if known <= set(images.column("path")) else 0


def _meant(source: str, split: str) -> str:
    """train, val or test by any name that lists use for it; but where a folder is called so, that one is meant."""
    if is_pack(source):
        is_folder = split in open_pack(source).record.folders
    else:
        is_folder = Path(source).expanduser().joinpath(split).is_dir()
    return name_of(split) if split and not is_folder and name_of(split) in SPLITS else split


def _listing(source: str, split: str, multilabel: bool) -> Listing:
    labels: Literal["single", "multi"] = "multi" if multilabel else "single"
    config = DataConfig(root=source, labels=labels)
    if split in SPLITS:
        return _listed_by(source, config)
    try:
        listing = _listed_by(source, replace(config, test=split))
    except DataError as error:
        if error.what.startswith("data.test:"):
            raise _no_split(split, source, str(error.got)) from None
        raise
    if listing.folders.get("test") not in (split, ""):  # CIFAR-10's own files, whose splits have names of their own
        raise _no_split(split, source, _there(listing))
    return listing


def _listed_by(source: str, config: DataConfig) -> Listing:
    """As `list_files`; rows of other splits are passed over, as other folders are: settings of the run may have named them."""
    path = Path(source).expanduser()
    if not is_pack(source) and path.is_file():
        return read_csv_list(path.resolve(), config, pass_over=True)
    return list_files(source, config)


def _rows(listing: Listing, split: str) -> list[_Row]:
    """Of what the listing calls so."""
    wanted = split if split in SPLITS else "test"
    if wanted not in listing.folders and not _is_plain(listing):
        raise _no_split(split, str(listing.source), _there(listing))
    return [row for where, row in _all_rows(listing) if where == wanted or _is_plain(listing)]


def _is_plain(listing: Listing) -> bool:
    """Whether it is a plain folder of classes."""
    return listing.folders == {"train": ""} and listing.source == listing.root


def _all_rows(listing: Listing) -> Iterator[tuple[str, _Row]]:
    """Each with its split."""
    for path, split, name, size, mtime_ns, inode in zip(*listing.table.to_pydict().values(), strict=True):
        yield split, (path, name, Digest(size, mtime_ns, inode))


def _held_out(manifest: Manifest, listing: Listing, progress: Progress | None) -> tuple[list[_Row] | None, str]:
    """The photographs that a run held out, where they are not what the listing calls val: a run carves them out of train,
    also beside a val/ if it is told so, it makes folds, or holds another folder out. And a note, or nothing.

    None where the listing is to be asked: it says the same, or it is of other photographs. Those of the run are known by
    their root, elsewhere by the bytes of each; by their paths alone only where nothing else is val."""
    val, own = manifest.rows("val"), str(listing.root) == manifest.root
    there = {row[0]: (split, row) for split, row in _all_rows(listing)}
    rows = _rows_of_run(manifest, listing, there)
    if "val" not in listing.folders and not _is_plain(listing):
        return rows or None, ""
    complete = len(rows) == val.num_rows
    if all(there.get(path, ("",))[0] == "val" for path, _, _ in rows):
        return None, ""
    if own:
        return (rows if complete or _is_plain(listing) else None), ""
    if not complete:
        few = f"all count as val: of the {val.num_rows:,} paths that the first run held out, {len(rows):,} are here"
        return None, few if _is_plain(listing) else ""
    found = digests(str(listing.root), [row[0] for row in rows], [row[2] for row in rows], progress)
    if [one.sha256 for one in found] == val.column("sha256").to_pylist():
        return rows, ""
    # A pack may have encoded them anew. Of a plain folder all would count: also what was trained on, unknown by its bytes.
    if _is_plain(listing):
        return rows, "val is what the first run held out, known by paths alone: the bytes are others"
    return None, "val is what is called so: what the first run held out is here by its paths, with other bytes"


def _rows_of_run(manifest: Manifest, listing: Listing, there: dict[str, tuple[str, _Row]]) -> list[_Row]:
    """What a run held out, as far as it lies here. `there`: the listing's rows with their splits, by path."""
    val, own = manifest.rows("val"), str(listing.root) == manifest.root
    rows: list[_Row] = []
    for path, label in zip(val.column("path").to_pylist(), val.column("label").to_pylist(), strict=True):
        if listing.source != listing.root or not own:  # a list may have got other labels, or be one of several here
            rows += [there[path][1]] if path in there else []
            continue
        state = there[path][1][2] if path in there else Digest(*listing.files.state(path))
        if path in there or state[:3] != GONE:  # data.val may name a folder that the listing passes over
            rows.append((path, manifest.classes[label] if label >= 0 else "", state))
    return rows


def _listed(
    root: str,
    paths: list[str],
    labels: Sequence[int],
    stats: Sequence[Digest],
    progress: Progress | None,
    keep: bool = False,
) -> Images:
    """A row for each file; without `keep`, files that are no images and are not called so are left out, with a note."""
    import pyarrow as pa

    found = digests(root, paths, stats, progress)
    rows = list(zip(paths, labels, found, strict=True))
    if not keep:
        rows = [row for row in rows if row[2].is_image or called_image(row[0])]
    left_out = len(paths) - len(rows)
    columns = {
        "id": pa.array(range(len(rows)), pa.int64()),
        "path": pa.array([path for path, _, _ in rows], pa.string()),
        "label": pa.array([label for _, label, _ in rows], pa.int32()),
        "sha256": pa.array([one.sha256 for _, _, one in rows], pa.string()),
        "error": pa.array([one.error or None for _, _, one in rows], pa.string()),
    }
    notes = (f"left out, no images: {left_out:,} files",) if left_out else ()
    return Images(root, pa.table(columns), notes)


def _stats(files: Files, paths: Sequence[str]) -> list[Digest]:
    return [Digest(*files.state(path)) for path in paths]


def _labels(names: list[str], classes: Sequence[str]) -> list[int]:
    place = {name: label for label, name in enumerate(classes)}
    unknown = sorted(set(names) - set(place) - {""})
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise DataError(
            "classes that the members do not know",
            got=", ".join(map(repr, unknown[:SHOWN])) + more,
            want=f"only those of the {len(classes)} that were trained",
            cure="take these folders out, or train with them",
        )
    return [place.get(name, -1) for name in names]


def _of_sets(
    listing: Listing,
    rows: list[_Row],
    classes: Sequence[str],
    notes: list[str],
    subset: bool,
    progress: Progress | None,
) -> Images:
    words = [word for _, word, _ in rows]
    if subset:
        words = [word and word_of([name for name in names_in(word) if name in classes]) for word in words]
    _labels(sorted({name for word in words for name in names_in(word)}), classes)  # refuses unknown ones
    known = sorted(set(words) - {""})
    labels = labels_of(words, known).to_pylist()
    images = _listed(str(listing.root), [row[0] for row in rows], labels, [row[2] for row in rows], progress)
    return replace(images, notes=(*notes, *images.notes), label_sets=sets_of(known, classes) or ((),))


def _without_held_out(images: Images, manifest: Manifest | None) -> Images:
    """Without the validation images of a run, by their bytes: what it was trained on is scored apart from them."""
    import pyarrow as pa

    if manifest is None:
        return images
    held = set(manifest.rows("val").column("sha256").to_pylist())
    kept = [row for row, digest in enumerate(images.digests()) if digest not in held]
    if not (left_out := len(images) - len(kept)):
        return images
    table = images.table.take(kept).set_column(0, "id", pa.array(range(len(kept)), pa.int64()))
    note = f"left out, held out for validation: {left_out:,} photographs"
    return replace(images, table=table, notes=(*images.notes, note))


def _notes(listing: Listing) -> tuple[str, ...]:
    odd, others = listing.unreadable_names, listing.passed_over
    notes = [f"left out, file names that are not UTF-8: {', '.join(odd[:SHOWN])}"] if odd else []
    if others and listing.source != listing.root:  # of a list this may be a slip of the pen
        notes.append(f"passed over, rows of other splits: {', '.join(others[:SHOWN])}")
    return tuple(notes)


def _there(listing: Listing) -> str:
    there = {folder or name for name, folder in listing.folders.items()} | set(listing.passed_over)
    return ", ".join(sorted(there)) or "a plain folder of classes"


def _no_split(split: str, source: str, got: str) -> DataError:
    cure = "choose another with --split NAME"
    return DataError(f"no split {split} in {source}", got=got, want=f"photographs of {split}", cure=cure)
