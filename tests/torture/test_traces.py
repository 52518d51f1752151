"""What an engine has: other engines on the same machine have as much of their own."""

from __future__ import annotations

from pathlib import Path

from .traces import links


def make(net: Path, name: str, *, mark: str = "", master: str = "") -> None:
    """A link, as sysfs shows it."""
    (net / name).mkdir(parents=True)
    (net / name / "ifalias").write_text(mark)
    if master:
        (net / name / "master").symlink_to(f"../{master}")


def test_links_of_another_engine_are_not_counted(tmp_path: Path) -> None:
    for instance, bridge in (("mooring-1", "mr-1"), ("mooring-2", "mr-2")):
        network = f"br-{instance}"
        make(tmp_path, bridge)
        make(tmp_path, network, mark=f"mooring:{instance}:c0ffee\n")
        make(tmp_path, f"mrv1-{instance}", master=bridge)
        make(tmp_path, f"mrv2-{instance}", master=network)
        make(tmp_path, f"mrv3-{instance}")
    make(tmp_path, "eth0")
    found = links("mooring-1", "mr-1", tmp_path)
    assert found == {"links of networks": 1, "links on networks": 2}
