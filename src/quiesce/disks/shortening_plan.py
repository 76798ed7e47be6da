"""How long a backing chain may be, and what to copy to make it shorter. Pure; shortening.py does it.

A checkpoint makes the VM's chain one image longer. Before a chain is too long, the image of its newest checkpoint gets a copy
that has fewer backing files:

    before    a (A) <- b (B) <- c (C) <- d (D) <- n         the VM writes n
    after     a (A) <- b (B) <- c (C)
                    <- d2 (D) <- n2                         d2 has what b, c and d have

Here `a` is the *base*: the nearest image that stays below the copy. Every checkpoint keeps its content, and A, B and C keep
their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quiesce.disks.survey import Survey
from quiesce.model.tree import Checkpoint

STARTABLE = 22
"""Most images in a chain with which every VM can be started, merged and checkpointed. libvirt reads QEMU's answer to
`query-block`, in which each image is nested in its overlay. libvirt 10.8 to 11.10 read JSON with json-c, which takes 31 levels
(json_tokener_new: JSON_TOKENER_DEFAULT_DEPTH is 32), and start no VM with a deeper answer: "nesting too deep". The answer has 6
levels more than images, and 9 more if the lowest image has a bitmap or is encrypted. Tried with libvirt 11.3 and QEMU 10.0: 25
images, 22 with a bitmap. Older and newer libvirts take 200 images (libvirt's NEWS, 12.0.0)."""
LONG = 14
"""A chain of so many images is made shorter after a checkpoint or a restore. Eight checkpoints more can be taken while that
fails, for example because there is too little space."""
SHORT = 7
"""Most images in a chain that was made shorter. The fewer images stay, the more is copied, but the less often."""


@dataclass(frozen=True)
class Shortening:
    """A copy that makes a chain shorter."""

    target: str
    image: str
    """The image of a checkpoint, which gets the copy."""
    owner: Checkpoint
    base: str | None
    """The image that stays below the copy; None: none does."""
    copied: tuple[str, ...]
    """The images whose data the copy has, nearest first; `image` is the first."""
    head: str | None
    """The image that the VM writes on this disk, if it is an overlay of `image`: the VM gets another overlay, of the copy."""
    bytes: int
    """What the copy takes, in bytes. It can be more if an image that quiesce did not make is compressed."""
    left: int
    """Images in the chain of `head`, or of a future overlay of `image`, afterwards."""

    @property
    def gained(self) -> int:
        """By how many images the chain gets shorter."""
        return len(self.copied) - 1


def length(found: Survey, path: str) -> int:
    """How many images a VM has to open that writes this one."""
    return len(found.chains.chain(path))


def long_heads(found: Survey, limit: int | None = None) -> Mapping[str, str]:
    """The images that the VM writes and whose chains have at least `limit` images, by default LONG, by target."""
    limit = limit or LONG
    return {target: path for target, path in found.head.items() if length(found, path) >= limit}


def reason_to_shorten(found: Survey, target: str) -> str | None:
    """A sentence if the chain of this disk should be made shorter, and can be."""
    head = found.head[target]
    images_in_chain, below = length(found, head), found.chains.below.get(head)
    if images_in_chain < LONG or below is None or not shortenings(found, target, below):
        return None
    return (
        f"the backing chain of disk {target} has {images_in_chain} images and was not made shorter yet; with more than"
        f" {STARTABLE}, libvirt may not be able to start the VM"
    )


def shortenings(found: Survey, target: str, image: str, *, urgent: bool = False) -> list[Shortening]:
    """What can be done for the chains that `image` is in, the best first: what copies the fewest bytes for each image by which
    the chain gets shorter. So the first copy above a large template is small, and the copies of earlier copies are rare.

    Only what leaves SHORT images at most, or with `urgent` less than that, too. Nothing if `image` belongs to no checkpoint, or
    if the VM reads it through an image that quiesce did not give to it."""
    owner = found.owners().get(image)
    chain = found.chains.chain(image)
    if owner is None or found.images.keys().isdisjoint(chain[:1]):
        return []
    head = found.head.get(target)
    if head is None or found.chains.below.get(head) != image:
        if owner.id == found.tree.head_parent and any(image in found.chains.chain(path) for path in found.head.values()):
            return []  # between the two is an image of somebody else's
        head = None
    elif head not in found.made:
        return []
    known = next((place for place, path in enumerate(chain) if path not in found.images), len(chain))
    bases = range(2, len(chain) + 1) if known == len(chain) else range(2, known)
    every = [_shortening(found, target, image, owner, head, chain, place) for place in bases]
    every.sort(key=lambda one: (one.bytes / one.gained, -one.gained))
    enough = [one for one in every if one.left <= SHORT]
    return [*enough, *(one for one in every if urgent and one.left > SHORT)]


def _shortening(
    found: Survey, target: str, image: str, owner: Checkpoint, head: str | None, chain: tuple[str, ...], place: int
) -> Shortening:
    """`place`: of the base in the chain."""
    copied = chain[:place]
    full = found.images[image].capacity
    bytes = min(sum(found.images[path].allocation for path in copied), full + full // 1000 + 1024 * 1024)
    bytes += found.images[head].allocation if head else 0
    base = chain[place] if place < len(chain) else None
    return Shortening(target, image, owner, base, copied, head, bytes, len(chain) - place + 2)
