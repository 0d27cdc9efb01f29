"""``tttlrm download``: its subcommands and their options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttlrm.errors import UserError

if TYPE_CHECKING:
    from tttlrm.downloads.input_views import InputViews, Published
    from tttlrm.downloads.weights import Released
    from tttlrm.progress import Bars

AddCommand = Callable[[Any, str, str, Any], argparse.ArgumentParser]

_WEIGHTS = """Fetch the authors' checkpoints, and convert them to safetensors.

Each takes 1.6 GB, and as much again while it is converted. A download that was cut off or killed goes on where it
stopped. The digest of what was fetched is recorded beside it; a file that changes later, here or there, is an error
that shows both.
"""

_DL3DV = """Fetch scenes of the DL3DV benchmark: images of 960x540 and their cameras, and convert them.

About 50 GB for all 140. Access is granted on the dataset's page of the hub, to those who accept its terms; then log in
with `hf auth login`. Every file is checked, and a run that was interrupted or killed goes on where it stopped.

With --convert, OUT gets a folder for each scene in the format of the suite, and what was fetched is removed scene by
scene. Without it, OUT/SCENE/nerfstudio is what `tttlrm convert dl3dv` reads.
"""

_TANKS = """Fetch train and truck of Tanks and Temples, with their COLMAP models, and convert them.

Both are in an archive of about 650 MB, which the authors of 3D Gaussian Splatting publish. Its digest is recorded in
OUT when it is first fetched, and checked afterwards.
"""

_GOES_ON = "the same command goes on where this one stopped"


def add_commands(kinds: Any, command: AddCommand) -> None:
    """Add the subcommands to the parser of ``tttlrm download``."""
    _add_weights(command(kinds, "weights", _WEIGHTS, _run_weights))
    _add_dl3dv(command(kinds, "dl3dv", _DL3DV, _run_dl3dv))
    _add_tanks(command(kinds, "tanks-and-temples", _TANKS, _run_tanks))


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(interrupted=_GOES_ON)
    parser.add_argument("which", nargs="?", choices=("full", "ar", "all"), default="all", help="(default: all)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: in the user's cache")
    parser.add_argument("--accept-license", action="store_true", help="of the weights; otherwise it is asked for")
    parser.add_argument("--revision", help="of the repository: a branch, tag or commit (default: main)")
    parser.add_argument("--offline", action="store_true", help="fetch nothing; say where the weights are, if anywhere")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="convert a published file that you have already"
    )


def _add_dl3dv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenes",
        nargs="+",
        required=True,
        metavar="SCENE",
        help="all; a number: as many, in the order of their names; or the scenes' names (64 hexadecimal digits)",
    )
    _add_common(parser)
    parser.add_argument("--convert", action="store_true", help="write scenes in the format of the suite")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="convert a copy of the dataset that you have already"
    )
    parser.add_argument("--revision", help="a branch, tag or commit (default: that of OUT's scenes, or else main)")
    parser.add_argument("--connections", type=int, default=8, metavar="N", help="at once (default: 8)")
    parser.add_argument("--verify", action="store_true", help="compare the digests of what is there already, too")


def _add_tanks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", nargs="+", choices=("train", "truck"), default=("train", "truck"))
    _add_common(parser)
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="the archive tandt_db.zip, if you have it already"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(interrupted=_GOES_ON)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the scenes")
    parser.add_argument("--offline", action="store_true", help="fetch nothing; say what is missing, if anything is")
    parser.add_argument("--keep", action="store_true", help="keep what was fetched when it is converted")
    parser.add_argument(
        "--input-views",
        metavar="WHICH",
        help="that scene files list: published (default), the lists of 16 and 32 views that come with Long-LRM; "
        "kmeans, none, so that they are chosen from the cameras; or a file like the published ones",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that convert (default: one for each core)")


def _run_weights(options: argparse.Namespace) -> None:
    from tttlrm.downloads.weights import LICENSE, RELEASED, default_folder, download_weights, is_there
    from tttlrm.progress import Bars

    if options.source is not None and options.which == "all":
        raise UserError("--from is one file: say whether it is full or ar")
    progress = Bars()
    progress.note(LICENSE)
    folder = options.output or default_folder()
    keys = list(RELEASED) if options.which == "all" else [options.which]
    missing = [RELEASED[key] for key in keys if not is_there(RELEASED[key], folder)]
    if missing and options.source is not None:
        _require_acceptance(options)
    elif missing and not options.offline:
        _ask_for_weights(missing, options, progress)
    for key in keys:
        path = download_weights(
            RELEASED[key],
            folder,
            revision=options.revision,
            offline=options.offline,
            source=options.source,
            progress=progress,
        )
        print(f"{path}: give it to `tttlrm reconstruct` with --weights")


def _ask_for_weights(missing: Sequence[Released], options: argparse.Namespace, progress: Bars) -> None:
    """Show the licence, and go on only if it is accepted; before that, see whether there is something to fetch."""
    from tttlrm.downloads.hub import announce
    from tttlrm.downloads.weights import license_text, on_hub

    for released in missing:
        announce(on_hub(released, options.revision))
    text = license_text()
    if text is not None:
        progress.note(text)
    _require_acceptance(options)


def _require_acceptance(options: argparse.Namespace) -> None:
    if not options.accept_license and not _confirms("Do you accept it? [y/N] "):
        raise UserError("the licence was not accepted; read it, and then give --accept-license")


def _run_dl3dv(options: argparse.Namespace) -> None:
    from tttlrm.downloads import dl3dv
    from tttlrm.downloads.dl3dv_listing import parse_choice
    from tttlrm.downloads.input_views import DL3DV
    from tttlrm.progress import Bars

    choice = parse_choice(options.scenes)
    _at_least_one("--jobs", options.jobs)
    _at_least_one("--connections", options.connections)
    converts = options.convert or options.source is not None
    if options.input_views is not None and not converts:
        raise UserError("--input-views is about scenes, which --convert makes")
    progress = Bars()
    progress.note(dl3dv.TERMS)
    how = dl3dv.Options(
        revision=options.revision,
        offline=options.offline,
        convert=converts,
        keep=options.keep,
        views=_views(options, DL3DV) if converts else None,
        connections=options.connections,
        jobs=options.jobs,
        verify=options.verify,
    )
    if options.source is not None:
        done = dl3dv.convert_brought(choice, options.source, options.output, how, progress)
    else:
        done = dl3dv.download_dl3dv(choice, options.output, how, progress)
    print(f"{options.output}: {len(done.scenes)} scenes of DL3DV, {done.fetched} files fetched")
    if converts:
        print(_about_views(done.listed, len(done.scenes)))


def _run_tanks(options: argparse.Namespace) -> None:
    from tttlrm.downloads import tanks_and_temples
    from tttlrm.downloads.input_views import TANKS_AND_TEMPLES
    from tttlrm.progress import Bars

    _at_least_one("--jobs", options.jobs)
    progress = Bars()
    progress.note(tanks_and_temples.TERMS)
    names = tuple(dict.fromkeys(options.scenes))
    how = tanks_and_temples.Options(
        source=options.source,
        offline=options.offline,
        keep=options.keep,
        views=_views(options, TANKS_AND_TEMPLES),
        jobs=options.jobs,
    )
    listed = tanks_and_temples.download_tanks_and_temples(names, options.output, how, progress)
    print(f"{options.output}: {', '.join(names)}")
    print(_about_views(listed, len(names)))


def _views(options: argparse.Namespace, published: Published) -> InputViews | None:
    from tttlrm.downloads.input_views import published_views, read_views

    which = options.input_views or "published"
    if which == "kmeans":
        return None
    if which == "published":
        return published_views(published, options.output / ".download", offline=options.offline)
    if not Path(which).is_file():
        raise UserError(f"--input-views must be published, kmeans or a file, and there is no file {which}")
    return read_views(Path(which))


def _about_views(listed: int, scenes: int) -> str:
    rest = f"; those of {scenes - listed} are chosen by K-means" if listed < scenes else ""
    return f"input views: {listed} of {scenes} scene files list them{rest}"


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{name} must be at least 1, not {value}")


def _confirms(question: str) -> bool:
    """Whether somebody at a terminal says yes."""
    if not sys.stdin.isatty():
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
