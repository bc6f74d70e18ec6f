"""A folder of images in a folder a class, or of such folders called train, validation and test."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from hf_transfer.data.images import IMAGE_SUFFIXES
from hf_transfer.errors import DataError, listed

NOT_WORTH_TELLING = ("thumbs.db", "desktop.ini")


def holds_image_folders(folder: Path) -> bool:
    """Say whether an image lies in the folder or below it."""
    return any(_is_image(path) for path in _files_of(folder))


def read_image_folder(folder: Path, split_names: Mapping[str, str]) -> tuple[dict[str, Dataset], list[str]]:
    """Read `CLASS/image.png`, or `train/CLASS/image.png` with validation and test beside train; folders of a class may hold folders.

    Args:
        folder: With images in it.
        split_names: Folder name -> split.

    Returns:
        Split -> dataset of `image` (a path from `folder`) and `label` (a ClassLabel of the folders' names, sorted), and sentences about
        files that were not read.

    Raises:
        DataError: An image lies in no class folder, a class has none, or splits stand beside other folders.
    """
    folders = _folders_of(folder)
    named = {path: split_names[path.name.lower()] for path in folders if path.name.lower() in split_names}
    others = [path.name for path in folders if path not in named]
    told = []
    are_classes = not any(name.lower().startswith(tuple(split_names)) for name in others) and not any(
        holds_image_folders(inner) for path in named for inner in _folders_of(path)
    )
    if named and others and are_classes:
        # Among classes, a folder of images called train is one: buses, cars, trains.
        told = [f"the folder {listed(path.name for path in named)} is read as a class, beside {listed(others)}"]
        named = {}
    if named and others:
        splits_found = listed(path.name for path in named)
        raise DataError(f"folder {folder} has folders of splits ({splits_found}) and others ({listed(others)}): keep one kind")
    if named and "train" not in named.values():
        raise DataError(f"folder {folder} has no folder train: it has {listed(path.name for path in named)}")
    if len(set(named.values())) < len(named):
        raise DataError(f"folder {folder} has several folders for one split: {listed(path.name for path in named)}; keep one")
    strays: list[Path] = []
    found: dict[str, list[tuple[Path, str]]] = {}
    for split, root in ((split, path) for path, split in named.items()) if named else [("train", folder)]:
        found[split] = list(_images_of(root, strays))
    if named:
        _refuse_loose(folder)
        strays += [path for path in folder.iterdir() if path.is_file()]
    classes = sorted({name for images in found.values() for _, name in images})
    if len(classes) == 1 and not named and (inside := [path.name for path in _folders_of(folders[0]) if holds_image_folders(path)]):
        raise DataError(
            f"folder {folder} holds one folder, {classes[0]}, with folders in it ({listed(inside)}): did you mean --dataset {folders[0]}?"
        )
    features = Features({"image": Value("string"), "label": ClassLabel(names=classes)})
    splits = {
        split: Dataset.from_dict(
            {"image": [str(path.relative_to(folder)) for path, _ in images], "label": [name for _, name in images]}, features=features
        )
        for split, images in found.items()
    }
    nested = sorted({name for images in found.values() for path, name in images if path.parent.name != name})
    told += [f"images in folders inside a class's folder count to that class: {listed(nested, 5)}"] if nested else []
    if linked := _lead_out(folder, [path for images in found.values() for path, _ in images]):
        names = listed((path.relative_to(folder) for path in linked), 5)
        told.append(
            f"{len(linked)} image{'s are links that lead' if len(linked) > 1 else ' is a link that leads'} out of the folder: {names}"
        )
    return splits, _tell(folder, strays) + told


def _lead_out(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Give the images that lie elsewhere, and stand in the folder as links or in folders that are links."""
    root = folder.resolve()
    inside = {parent: parent.resolve().is_relative_to(root) for parent in {path.parent for path in images}}
    return [path for path in images if not inside[path.parent] or (path.is_symlink() and not path.resolve().is_relative_to(root))]


def _images_of(root: Path, strays: list[Path]) -> Iterable[tuple[Path, str]]:
    """Yield (file, class); what is no image joins `strays`."""
    _refuse_loose(root)
    strays += [path for path in root.iterdir() if path.is_file()]
    for folder in _folders_of(root):
        files = sorted(_files_of(folder))
        images = [path for path in files if _is_image(path)]
        strays += [path for path in files if not _is_image(path)]
        if not images:
            raise DataError(f"class folder {folder} holds no image ({listed(IMAGE_SUFFIXES)}): fill it, or remove it")
        yield from ((path, folder.name) for path in images)


def _folders_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _tell(folder: Path, strays: list[Path]) -> list[str]:
    told = sorted(
        str(path.relative_to(folder)) for path in strays if not path.name.startswith(".") and path.name.lower() not in NOT_WORTH_TELLING
    )
    if not told:
        return []
    return [f"{len(told)} file{'s are' if len(told) > 1 else ' is'} no image by name and not read: {listed(told, 5)}"]


def _refuse_loose(root: Path) -> None:
    """Refuse images that lie beside the folders they should lie in."""
    if loose := sorted(path.name for path in root.iterdir() if _is_image(path) and path.is_file()):
        raise DataError(f"images lie in {root} itself ({listed(loose, 3)}) and in no class's folder: expected {root.name}/CLASS/image.png")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _files_of(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield what is no folder in a folder and below, but for hidden folders; what can be read of it shows when it is.

    Raises:
        DataError: A link leads back to a folder it stands in.
    """
    here = (*above, folder.resolve())
    if here[-1] in above:
        raise DataError(f"{folder} is a link back to a folder it stands in, so its images have no end: remove the link")
    yield from (path for path in folder.iterdir() if not path.is_dir())
    for inner in _folders_of(folder):
        yield from _files_of(inner, here)
