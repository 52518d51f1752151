"""Images: tags that move, and Docker's rules for removing."""

from __future__ import annotations

import pytest

from mooring.kit import subjects
from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.base import Done
from mooring.kit.models.image import AddImage, ImageRemoved, Layer, RemoveImage, TagImage
from mooring.kit.store import key_for
from mooring.lifecycle.images import ImageHandlers
from tests.fakes import FakeHost

from .conftest import IMAGE_ID, Client, Replica, add_image, image

OTHER_ID = "sha256:" + "ef" * 32
SHORT = "ab" * 6


async def tag(client: Client, name: str, reference: str) -> Done:
    """Tag an image."""
    request = TagImage(image=name, reference=reference)
    return await client.bus.request(subjects.IMAGE_TAG, request, Done)


async def remove(client: Client, name: str, *, force: bool = False) -> ImageRemoved:
    """Remove an image or a tag."""
    request = RemoveImage(image=name, force=force)
    return await client.bus.request(subjects.IMAGE_REMOVE, request, ImageRemoved)


async def test_the_last_tag_takes_the_image_with_it(client: Client, host: FakeHost) -> None:
    await tag(client, "bb", "other:1")
    assert (await remove(client, "bb")).untagged == ["bb:latest"]
    removed = await remove(client, "other:1")
    assert removed.untagged == ["other:1"]
    assert removed.deleted == [IMAGE_ID, "sha256:" + "cd" * 32]
    assert [request.image.id for request in host.removed_layers] == [IMAGE_ID]
    with pytest.raises(NotFound, match=r"^No such image: other:1$"):
        await remove(client, "other:1")
    events = await client.events(4)
    assert [(e.type, e.action) for e in events] == [
        ("image", "tag"),
        ("image", "untag"),
        ("image", "untag"),
        ("image", "delete"),
    ]
    assert events[0].attributes == {"made": "here", "name": "other:1"}
    assert events[0].actor == IMAGE_ID


async def test_an_image_by_id_with_several_names_must_be_forced(client: Client) -> None:
    await tag(client, "bb", "other:1")
    with pytest.raises(Conflict) as error:
        await remove(client, SHORT)
    assert error.value.message == (
        f"conflict: unable to delete {SHORT} (must be forced) - "
        "image is referenced in multiple repositories"
    )
    removed = await remove(client, IMAGE_ID, force=True)
    assert removed.untagged == ["bb:latest", "other:1"]


async def test_an_image_in_use_stays(client: Client) -> None:
    container = await client.create("web")
    with pytest.raises(Conflict, match=r"\(must force\) - container .* is using its referenced"):
        await remove(client, "bb")
    with pytest.raises(Conflict) as error:
        await remove(client, SHORT)
    assert error.value.message == (
        f"conflict: unable to delete {SHORT} (must be forced) - "
        f"image is being used by stopped container {container[:12]}"
    )
    await client.start("web")
    with pytest.raises(Conflict) as error:
        await remove(client, SHORT, force=True)
    assert error.value.message == (
        f"conflict: unable to delete {SHORT} (cannot be forced) - "
        f"image is being used by running container {container[:12]}"
    )


async def test_untagging_by_force_leaves_what_is_used(client: Client, lifecycle: Replica) -> None:
    await client.create("web")
    removed = await remove(client, "bb", force=True)
    assert (removed.untagged, removed.deleted) == (["bb:latest"], [])
    assert lifecycle.engine.images.get("ab" * 32) is not None


async def test_layers_that_another_image_uses_stay(client: Client, host: FakeHost) -> None:
    other = image(OTHER_ID)
    other.layers.append(Layer(diff_id="sha256:" + "12" * 32, chain_id="sha256:" + "34" * 32))
    await add_image(client.bus, other, "other")
    removed = await remove(client, "other")
    assert removed.deleted == [OTHER_ID, "sha256:" + "34" * 32]
    assert host.removed_layers[0].keep == ["sha256:" + "cd" * 32]


async def test_a_layer_is_told_of_with_the_last_image_that_has_it(client: Client) -> None:
    await remove(client, "bb")
    await add_image(client.bus, image(), "base")
    above = image(OTHER_ID).model_copy(update={"parent": IMAGE_ID})
    above.layers.append(Layer(diff_id="sha256:" + "12" * 32, chain_id="sha256:" + "34" * 32))
    await add_image(client.bus, above, "above")
    await remove(client, "base")
    removed = await remove(client, "above")
    layers = ["sha256:" + "34" * 32, "sha256:" + "cd" * 32]
    assert removed.deleted == [OTHER_ID, layers[0], IMAGE_ID, layers[1]]


async def test_a_tag_moves_and_leaves_the_old_image(client: Client, lifecycle: Replica) -> None:
    request = AddImage(image=image(OTHER_ID), references=["bb"], action="load")
    await client.bus.request(subjects.IMAGE_ADD, request, Done)
    container = await client.create("web")
    assert (await client.record(container)).image_id == OTHER_ID
    assert lifecycle.engine.images.get("ab" * 32) is not None
    load = (await client.events(1))[0]
    assert (load.action, load.attributes["name"]) == ("load", OTHER_ID)


async def test_a_name_given_once_more_is_told_of_once_for_each_command(
    client: Client, lifecycle: Replica
) -> None:
    row = lifecycle.engine.references.get(key_for("docker.io/library/bb:latest"))
    assert row is not None
    request = TagImage(image="bb", reference="bb:latest", request_id="once")
    for _ in range(2):
        # As if the one that carried it out first had died before it could answer.
        done = await ImageHandlers(lifecycle.engine).tag(request)
    await tag(client, "bb", "bb:latest")
    await tag(client, "bb", "end")
    events = await client.events(3)
    assert [e.attributes["name"] for e in events] == ["bb:latest", "bb:latest", "end:latest"]
    now = lifecycle.engine.references.get(key_for("docker.io/library/bb:latest"))
    assert now is not None
    assert done.revision > row.revision
    assert now.record.tagged_ns > row.record.tagged_ns


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("BB", "must be lowercase"),
        ("a b", "invalid reference format"),
        ("x@sha256:" + "a" * 64, "digest reference"),
        ("sha256:abc", "digest algorithm"),
    ],
)
async def test_a_bad_tag_is_refused(client: Client, reference: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        await tag(client, "bb", reference)


async def test_a_blank_name_is_refused(client: Client) -> None:
    with pytest.raises(InvalidParameter, match="image name cannot be blank"):
        await remove(client, " ")
