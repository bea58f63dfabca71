"""`pipeline cache …`: look at, check, share and clean depth caches. Needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.commands.options import (
    BitsOption,
    DryRunOption,
    FingerprintOption,
    JsonOption,
    RootArgument,
    TokenOption,
)
from pipeline.errors import ExitCode, UsageError
from pipeline.output import (
    format_bytes,
    format_table,
    require_writable,
    stdout_kept_clean,
    to_jsonable,
    write_result,
)

app = typer.Typer(help="Depth caches: look at, check, share, clean.", no_args_is_help=True)


@app.command("ls")
def list_caches(root: RootArgument, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List the caches under a root."""
    from depthcache.cache_reader import list_caches as find_caches

    if "://" not in root and not Path(root).is_dir():
        raise UsageError(
            f"cache root {root} does not exist; `pipeline depth --cache ROOT` makes one"
        )
    with stdout_kept_clean():
        caches = _fields(find_caches(root, token=token))
    rows = [
        [
            str(cache.get("fingerprint", "")),
            str(cache.get("num_maps", "")),
            str(cache.get("num_segments", "")),
            format_bytes(float(cache.get("num_bytes") or 0)),
        ]
        for cache in caches
    ]
    if not rows and "://" not in root:
        _refuse_other_folder(Path(root))
    text = (
        format_table(["cache", "maps", "segments", "size"], rows) if rows else f"no cache in {root}"
    )
    write_result("cache ls", {"root": root, "caches": caches}, text, as_json=as_json)


@app.command("info")
def show_info(
    root: RootArgument,
    fingerprint: FingerprintOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Model, convention, licence, counts and provenance of one cache."""
    from depthcache import DepthCache

    with stdout_kept_clean():
        info = _fields(DepthCache.open(root, fingerprint=fingerprint, token=token).info())
    text = "\n".join(_render_fields(info))
    write_result("cache info", {"root": root, **info}, text, as_json=as_json)


@app.command("coverage")
def show_coverage(
    root: RootArgument,
    images: Annotated[Path | None, typer.Option("--images", help="Image folder.")] = None,
    coco: Annotated[Path | None, typer.Option("--coco", help="COCO JSON.")] = None,
    fingerprint: FingerprintOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which images have depth; exit code 3 and the command that fills the gap when some lack it."""
    from depthcache import DepthCache, image_key
    from pipeline.datasets.image_lists import list_images

    with stdout_kept_clean():
        files = list_images(images, coco)
        cache = DepthCache.open(root, fingerprint=fingerprint, token=token)
        unreadable = [path for path in files if not path.is_file()]
        keys = {path: image_key(path.read_bytes()) for path in files if path.is_file()}
        absent = set(cache.missing(list(dict.fromkeys(keys.values()))))
        missing = [path for path, key in keys.items() if key in absent] + unreadable
        info = _fields(cache.info())
    num_present = len(files) - len(missing)
    command = _fill_command(root, images, coco, info) if missing else None
    lines = [f"{num_present} of {len(files)} images have depth"]
    lines += [f"missing: {path}" for path in missing[:10]]
    if len(missing) > 10:
        lines.append(f"… and {len(missing) - 10} more")
    if command:
        lines.append(f"to fill the gap: {command}")
    result = {
        "ok": not missing,
        "num_images": len(files),
        "num_present": num_present,
        "num_missing": len(missing),
        "missing": missing,
        "command": command,
    }
    write_result("cache coverage", result, "\n".join(lines), as_json=as_json)
    if missing:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


@app.command("verify")
def verify(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Cache root, local.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Recompute what is damaged; needs --images.")
    ] = False,
    images: Annotated[Path | None, typer.Option("--images", help="Images, for --repair.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model, for --repair.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Revision of a hub model, for --repair.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find every damaged, missing or stray object. Exit code 4 if there is any."""
    from depthcache.segments.verification import verify_cache

    if not root.is_dir():
        raise UsageError(f"cache root {root} does not exist")
    with stdout_kept_clean():
        report = verify_cache(root)
        repaired = None
        if repair and report.problems:
            repaired = _fields(_repair(root, images, model, revision))
            report = verify_cache(root)
        problems = _fields(report.problems)
    lines = [f"{report.num_objects} objects, {report.num_maps} maps: " + _count_text(len(problems))]
    for problem in problems:
        row = f", row {problem['row']}" if problem.get("row") is not None else ""
        where = f"{problem.get('segment')}/{problem.get('object')}{row}"
        lines.append(f"{problem.get('kind')}: {where}: {problem.get('detail')}")
    result = {
        "ok": not problems,
        "root": root,
        "num_objects": report.num_objects,
        "num_maps": report.num_maps,
        "num_problems": len(problems),
        "problems": problems,
        "repaired": repaired,
    }
    write_result("cache verify", result, "\n".join(lines), as_json=as_json)
    if problems:
        raise typer.Exit(ExitCode.INTEGRITY)


@app.command("read")
def read(
    root: RootArgument,
    image: Annotated[Path, typer.Option("--image", help="Image file whose depth to read.")],
    out: Annotated[Path, typer.Option("--out", help=".npy (float32) or .png (16-bit picture).")],
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH; default the map's own.")] = None,
    fingerprint: FingerprintOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read one image's depth: float32, larger is nearer."""
    import numpy as np

    from depthcache import DepthCache, image_key

    if out.suffix not in (".npy", ".png"):
        raise UsageError(f"--out takes .npy or .png, got {out}")
    wanted = _parse_size(size)
    if not image.is_file():
        raise UsageError(f"image {image} does not exist")
    require_writable(out)
    with stdout_kept_clean():
        cache = DepthCache.open(root, fingerprint=fingerprint, token=token)
        inverse_depth = cache.read(image_key(image.read_bytes()), size=wanted)
        if out.suffix == ".npy":
            np.save(out, inverse_depth)
        else:
            from PIL import Image

            low, high = float(inverse_depth.min()), float(inverse_depth.max())
            scaled = (inverse_depth - low) / max(high - low, 1e-12) * 65535
            Image.fromarray(scaled.round().astype(np.uint16)).save(out)
    result = {
        "out": out,
        "height": inverse_depth.shape[0],
        "width": inverse_depth.shape[1],
        "minimum": float(inverse_depth.min()),
        "maximum": float(inverse_depth.max()),
    }
    text = f"{result['height']}×{result['width']} → {out}"
    write_result("cache read", result, text, as_json=as_json)


@app.command("import")
def import_depth(
    root: RootArgument,
    source: Annotated[Path, typer.Option("--source", help="HDF5 file, zarr, or folder of maps.")],
    images: Annotated[Path, typer.Option("--images", help="The maps' images.")],
    source_format: Annotated[
        str, typer.Option("--format", help="hdf5, png8, png16, npy, npz or zarr.")
    ],
    convention: Annotated[
        str,
        typer.Option(help="relative-inverse or metric; larger is nearer or farther accordingly."),
    ] = "relative-inverse",
    model: Annotated[
        str, typer.Option(help="What made the maps, for the fingerprint.")
    ] = "imported",
    bits: BitsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take depth maps that exist already into a cache."""
    from depthcache.exchange.interchange import import_maps

    chosen = {} if bits is None else {"bits": bits}
    with stdout_kept_clean(), _wrong_values_refused():
        summary = _fields(
            import_maps(
                source,
                root,
                images=images,
                format=source_format,
                convention=convention,
                model=model,
                **chosen,
            )
        )
    write_result("cache import", summary, "\n".join(_render_fields(summary)), as_json=as_json)
    if summary["num_failed"]:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


@app.command("export")
def export(
    root: RootArgument,
    out: Annotated[Path, typer.Option("--out", help="File or folder to write.")],
    target_format: Annotated[
        str, typer.Option("--format", help="hdf5, png8, png16, npy, npz or zarr.")
    ] = "npy",
    fingerprint: FingerprintOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a cache's maps in another format."""
    from depthcache.exchange.interchange import export_cache

    with stdout_kept_clean(), _wrong_values_refused():
        summary = _fields(export_cache(root, out, format=target_format, fingerprint=fingerprint))
    write_result("cache export", summary, "\n".join(_render_fields(summary)), as_json=as_json)


@app.command("push")
def push(
    root: RootArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="Cache service.")],
    fingerprint: FingerprintOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every segment that a service lacks."""
    from depthcache.exchange.transfer import push_cache

    with stdout_kept_clean():
        summary = _fields(push_cache(root, url, token, fingerprint=fingerprint))
    write_result("cache push", summary, "\n".join(_render_fields(summary)), as_json=as_json)


@app.command("pull")
def pull(
    url: Annotated[str, typer.Argument(metavar="URL", help="Cache service.")],
    root: RootArgument,
    fingerprint: FingerprintOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch every segment that a local root lacks."""
    from depthcache.exchange.transfer import pull_cache

    with stdout_kept_clean():
        summary = _fields(pull_cache(url, root, token, fingerprint=fingerprint))
    write_result("cache pull", summary, "\n".join(_render_fields(summary)), as_json=as_json)


@app.command("gc")
def collect(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Cache root, local.")],
    min_age_seconds: Annotated[
        float, typer.Option(min=0, help="Younger things may belong to a run on another machine.")
    ] = 3600.0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete what interrupted runs left behind; sealed segments stay."""
    from depthcache.segments.garbage_collection import collect_garbage

    if not root.is_dir():
        raise UsageError(f"cache root {root} does not exist")
    with stdout_kept_clean():
        summary = _fields(collect_garbage(root, dry_run=dry_run, min_age_seconds=min_age_seconds))
    write_result("cache gc", summary, "\n".join(_render_fields(summary)), as_json=as_json)


@app.command("serve")
def serve_root(
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="Cache root: folder, s3:// or gs:// address.")
    ],
    host: Annotated[str, typer.Option(help="Only this machine reaches the default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8787,
    tokens_file: Annotated[Path | None, typer.Option(help="TOML file of named tokens.")] = None,
    read_access: Annotated[
        str, typer.Option("--read", help="anonymous or token; writing always needs a token.")
    ] = "anonymous",
    max_bytes: Annotated[
        int, typer.Option(min=2**16, help="Largest body of one upload request.")
    ] = 64 * 2**20,
    size_cap_bytes: Annotated[
        int | None, typer.Option(min=0, help="Evict unpinned segments beyond this size.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    request_rate: Annotated[
        float, typer.Option(min=0, help="Requests a second and client; 0: any.")
    ] = 0.0,
    max_concurrent_uploads: Annotated[
        int, typer.Option(min=1, help="More are asked to come again later.")
    ] = 8,
    work: Annotated[
        Path | None, typer.Option(help="Folder for uploads under way, where ROOT is a bucket.")
    ] = None,
) -> None:
    """Serve a cache root to other machines until interrupted."""
    from depthcache.service.server import serve

    read_policies: dict[str, Literal["anonymous", "token"]] = {
        "anonymous": "anonymous",
        "token": "token",
    }
    if read_access not in read_policies:
        raise UsageError(f"--read takes anonymous or token, got {read_access!r}")
    with _wrong_values_refused():
        serve(
            root,
            host=host,
            port=port,
            tokens_file=tokens_file,
            read=read_policies[read_access],
            max_bytes=max_bytes,
            size_cap_bytes=size_cap_bytes,
            tls_cert=tls_cert,
            tls_key=tls_key,
            request_rate=request_rate,
            max_concurrent_uploads=max_concurrent_uploads,
            work=work,
        )


@contextlib.contextmanager
def _wrong_values_refused() -> Iterator[None]:
    """Let the command line be told to be wrong where the cache package raises ValueError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def _refuse_other_folder(folder: Path) -> None:
    """Refuse a folder without a cache in it, unless it may be a root that nothing was put in yet.

    Raises:
        UsageError: it is one cache rather than their root, or holds other things.
    """
    from depthcache.format.segment_format import FINGERPRINT

    if (folder / FINGERPRINT).is_file():
        raise UsageError(
            f"{folder} is one cache, not a root of caches; name the folder around it, or "
            f"`pipeline cache info {folder}`"
        )
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError(
            f"{folder} is no cache root: it is not empty, and no folder in it has a {FINGERPRINT}; "
            "name the ROOT of `pipeline depth --cache ROOT`"
        )


def _fields(value: object) -> Any:
    """A result of the cache package as plain JSON values."""
    return to_jsonable(value)


def _render_fields(fields: object, indent: str = "") -> list[str]:
    lines = []
    if isinstance(fields, dict):
        for key, value in fields.items():
            if isinstance(value, dict):
                lines += [f"{indent}{key}:", *_render_fields(value, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {value}")
    return lines


def _count_text(num_problems: int) -> str:
    if num_problems == 0:
        return "all intact"
    return f"{num_problems} problem" + ("s" if num_problems > 1 else "")


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, separator, width = text.partition("x")
    if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--size takes HEIGHTxWIDTH, for example 480x640, got {text!r}")
    return int(height), int(width)


def _fill_command(root: str, images: Path | None, coco: Path | None, info: Any) -> str:
    """The command line that computes the missing depth with the cache's own model.

    A local model's name in the fingerprint is its family; where it lay stands in the provenance.
    """
    import shlex

    from depthcache.format.quantisation import DEFAULT_BITS

    sources = [entry["model_source"] for entry in info["provenance"] if "model_source" in entry]
    model = str(sources[-1] if sources else info.get("model") or "MODEL")
    words = ["pipeline", "depth"]
    if coco is not None:
        words += ["--coco", str(coco)]
    words += ["--images", str(images), "--model", model, "--cache", root]
    if info.get("revision"):
        words += ["--revision", str(info["revision"])]
    if info.get("precision") not in (None, "fp32"):
        words += ["--precision", str(info["precision"])]
    bits = (info.get("encoding") or {}).get("bits", DEFAULT_BITS)
    if bits != DEFAULT_BITS:
        words += ["--bits", str(bits)]
    return shlex.join(words)


def _repair(root: Path, images: Path | None, model: str | None, revision: str | None) -> object:
    from depthcache.stage_one.repair_cache import repair_cache
    from depthcache.stage_one.settings import StageOneSettings
    from pipeline.datasets.image_lists import list_folder_images
    from pipeline.runs.experiment_files import resolve_model

    if images is None or model is None:
        raise UsageError("--repair recomputes depth: it needs --images DIR and --model MODEL")
    return repair_cache(
        root, list_folder_images(images), resolve_model(model), StageOneSettings(revision=revision)
    )
