"""`sovereign policy build | sign | push | list | rollback`, and the keys: policy as signed, numbered bundles."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.admission.bundle_format import BundleArtefact
    from cluster.admission.bundle_shelf import AcceptedBundle
    from cluster.settings import Settings

# A push compiles and tries the policy.
PUSH_TIMEOUT_S = 120.0

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's file.", show_default=False)]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="The private key [default: the one that this box signs its folder with].", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `sovereign policy`."""
    for command in (build, sign, push, rollback, keygen, trust, untrust):
        app.command()(command)
    app.command("list")(list_bundles)


def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("policy.tar"),
    policies: Annotated[
        Path | None,
        typer.Option("--policies", help="Folder of the policies [default: SOVEREIGN_POLICY_DIR].", show_default=False),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("--number", min=1, help="Its number [default: one more than the home's last].", show_default=False),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write the policies of a folder as a bundle, which is not signed yet."""
    from cluster.admission.bundle import bundle_of, read_policies
    from cluster.admission.bundle_format import BundleArtefact

    settings = settings_of(home, policy_dir=policies)
    files = read_policies(settings.policy_dir)
    revision = bundle_of(files, str(settings.policy_dir)).revision
    chosen = number if number is not None else _next_number(settings)
    artefact = BundleArtefact.build(files, number=chosen, revision=revision, created_us=time.time_ns() // 1_000)
    _write(out, artefact)
    _say(f"Bundle {chosen} of revision {revision} is in {out}. Sign it: sovereign policy sign {out}", _described(artefact, out))


def sign(bundle: Bundle, key: Key = None, home: Home = None, as_json: Json = False) -> None:
    """Sign a bundle, in place of any signature that it has."""
    from cluster.admission.bundle_keys import PolicyKey

    signer = PolicyKey.load(key or settings_of(home).policy_key)
    artefact = signer.sign(_read(bundle))
    _write(bundle, artefact)
    _say(f"{bundle} is signed by the key {signer.key_id}.", _described(artefact, bundle))


def push(bundle: Bundle, home: Home = None, as_json: Json = False) -> None:
    """Put a signed bundle in force in the running cluster; if it is refused, the one before goes on."""
    _push(settings_of(home), _bytes(bundle))


def rollback(
    number: Annotated[
        int | None, typer.Argument(min=1, help="The bundle to go back to [default: the one before].", show_default=False)
    ] = None,
    key: Key = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Sign the content of an earlier bundle under a new number, and put it in force."""
    from cluster.admission.bundle_format import BundleArtefact
    from cluster.admission.bundle_keys import PolicyKey
    from cluster.admission.bundle_shelf import BundleShelf

    settings = settings_of(home)
    signer = PolicyKey.load(key or settings.policy_key)
    known = _accepted(settings)
    earlier = _to_go_back_to(known, number)
    old = BundleArtefact.from_bytes(BundleShelf(settings.policy_home / "bundles").read(earlier))
    new = BundleArtefact.build(
        old.files, number=known[-1].number + 1, revision=old.manifest.revision, created_us=time.time_ns() // 1_000
    )
    _push(settings, signer.sign(new).to_bytes())


def list_bundles(home: Home = None, as_json: Json = False) -> None:
    """List the bundles that were accepted, the latest first: that one is in force. Works without a running cluster."""
    from dataclasses import asdict

    from cluster.wiring import policy_ring

    settings = settings_of(home)
    known = _accepted(settings)[::-1]
    keys = policy_ring(settings).ids
    data = {"in_force": known[0].number if known else 0, "bundles": [asdict(b) for b in known], "keys": keys}

    def render(console: Console) -> None:
        rows = [[b.number, b.revision, b.digest[:12], b.key_id, b.actor, _when(b.accepted_us)] for b in known]
        console.print(table(["number", "revision", "digest", "key", "by", "accepted"], rows, right=["number"]))
        console.print(f"Keys that may sign: {', '.join(keys) or 'none'}", markup=False, highlight=False)

    OUTPUT.result(data, render)


def keygen(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file (0600) for the private key.")] = Path("policy.key"),
    as_json: Json = False,
) -> None:
    """Make a key that signs policy. Keep the private one away from the cluster; pin the public one there (`trust`)."""
    from cluster.admission.bundle_keys import PolicyKey

    key = PolicyKey.create(out)
    public = out.with_name(out.name + ".pub.pem")
    public.write_bytes(key.public_pem)
    words = f"The key {key.key_id} is in {out}. On the cluster: sovereign policy trust {public}"
    _say(words, {"key_id": key.key_id, "private": str(out), "public": str(public)})


def trust(
    public: Annotated[Path, typer.Argument(metavar="KEY.pub.pem", help="The public key's file.", show_default=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Pin a public key: bundles that it signs are taken from now on."""
    from cluster.admission.bundle_keys import pin

    key_id = pin(settings_of(home).policy_keys, _bytes(public))
    _say(f"The key {key_id} may sign policy.", {"key_id": key_id, "trusted": True})


def untrust(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id.", show_default=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take a pinned key out. Put a bundle of another key in force first, or the cluster will not start again."""
    from cluster.admission.bundle_keys import unpin
    from cluster.errors import ConflictError

    settings = settings_of(home)
    known = _accepted(settings)
    if known and known[-1].key_id == key_id:
        raise ConflictError(
            f"The key {key_id} signed bundle {known[-1].number}, which is in force.",
            hint="Push a bundle that another key has signed, then take this one out.",
        )
    unpin(settings.policy_keys, key_id)
    _say(f"The key {key_id} may not sign policy any more.", {"key_id": key_id, "trusted": False})


def _push(settings: Settings, artefact: bytes) -> None:
    import asyncio

    from actors.directory import Governance
    from actors.ray_connection import connect_to

    connect_to(settings)
    who = f"operator:{getpass.getuser()}"
    done = asyncio.run(Governance().call("push_policy", artefact, who, timeout_s=PUSH_TIMEOUT_S))
    _say(f"Bundle {done['number']} of revision {done['revision']} is in force.", done)


def _accepted(settings: Settings) -> list[AcceptedBundle]:
    from cluster.admission.bundle_shelf import accepted_bundles
    from cluster.wiring import open_coordination

    if not settings.home.exists():
        return []
    coordination = open_coordination(settings)
    try:
        return list(accepted_bundles(coordination))
    finally:
        coordination.close()


def _next_number(settings: Settings) -> int:
    known = _accepted(settings)
    return known[-1].number + 1 if known else 1


def _to_go_back_to(known: list[AcceptedBundle], number: int | None) -> AcceptedBundle:
    from cluster.errors import NotFoundError

    earlier = {b.number: b for b in known[:-1]}
    if number is None and earlier:
        # Going back twice goes back further only when it is told to.
        return known[-2]
    if number is None or number not in earlier:
        what = "no earlier policy bundle" if number is None else f"no earlier policy bundle {number}"
        raise NotFoundError(f"There is {what} to go back to.", hint="`sovereign policy list` shows which there were.")
    return earlier[number]


def _read(path: Path) -> BundleArtefact:
    from cluster.admission.bundle_format import BundleArtefact

    return BundleArtefact.from_bytes(_bytes(path))


def _bytes(path: Path) -> bytes:
    from cluster.admission.bundle_format import MAX_ARTEFACT_BYTES
    from cluster.errors import NotFoundError

    try:
        with path.open("rb") as file:
            return file.read(MAX_ARTEFACT_BYTES + 1)
    except OSError as e:
        raise NotFoundError(f"{path} can't be read: {e.strerror}.") from None


def _write(path: Path, artefact: BundleArtefact) -> None:
    from cluster.admission.bundle_shelf import write_whole
    from cluster.errors import StorageError

    try:
        write_whole(path.absolute(), artefact.to_bytes())
    except OSError as e:
        raise StorageError(f"{path} can't be written: {e.strerror}.") from None


def _described(artefact: BundleArtefact, path: Path) -> dict[str, Any]:
    manifest, signature = artefact.manifest, artefact.signature
    return {
        "file": str(path),
        "number": manifest.number,
        "revision": manifest.revision,
        "created": manifest.created,
        "files": len(manifest.files),
        "key_id": signature.key_id if signature else "",
    }


def _say(words: str, data: dict[str, Any]) -> None:
    OUTPUT.result(data, lambda console: console.print(words, markup=False, highlight=False))


def _when(us: int) -> str:
    from cluster.clock import utc

    return utc(us).strftime("%Y-%m-%d %H:%M:%SZ")
