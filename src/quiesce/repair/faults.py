"""What `doctor` can find, and what a repair does about each fault. Pure: no fault looks at anything, and none changes
anything; repair/looks.py finds them, and repair/mends.py carries the plans out.

The rule: `--repair` alone does only what loses nothing. Whatever removes or gives up something is a choice of the user's, named
with `--give-up`. A plan that gives something up says what is lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from quiesce.disks.last_written import Astray, AstrayState


@dataclass(frozen=True)
class Choice:
    """Something that can be given up."""

    give_up: str
    """The name for --give-up: a checkpoint's, a path."""
    does: str
    loses: str


@dataclass(frozen=True)
class Remedy:
    """What can be done about a fault."""

    does: str | None = None
    """What `--repair` does; it loses nothing. None: nothing without a choice."""
    choices: tuple[Choice, ...] = ()
    advice: str | None = None
    """What a person can do."""
    wrong: bool = True
    """False: worth knowing, but nothing is wrong."""


@dataclass(frozen=True)
class Fault:
    """`subject`: the checkpoint's name, the path, or whatever else the fault is about. With the class, it is its identity."""

    vm: str
    subject: str
    text: str
    """What is wrong: a sentence without its end."""
    known: tuple[str, ...] = field(default=(), compare=False)
    """The evidence: a sentence each. It may change while somebody goes on writing, and the fault stays the same."""

    @property
    def kind(self) -> str:
        """The name for programs. Example: `lost-files` for LostFiles."""
        words = "".join(f"-{sign.lower()}" if sign.isupper() else sign for sign in type(self).__name__)
        return words.lstrip("-")

    def remedy(self) -> Remedy:
        return Remedy()


class Unexamined(Fault):
    """The VM, or a part of it, could not be looked at."""


@dataclass(frozen=True)
class InterruptedVerb(Fault):
    def remedy(self) -> Remedy:
        return Remedy(does="it is finished or undone, as the images and libvirt say")


@dataclass(frozen=True)
class InterruptedImport(Fault):
    def remedy(self) -> Remedy:
        return Remedy(does="the files that it has copied are removed; the export is whole")


@dataclass(frozen=True)
class AbandonedCopy(Fault):
    """A copy of a checkpoint that was booted aside, and whose process is gone."""

    def remedy(self) -> Remedy:
        return Remedy(does="the copy is ended, and its files are removed")


@dataclass(frozen=True)
class Undefined(Fault):
    wanted: bool = False
    """Whether the user named this VM, or confirmed the list."""

    def remedy(self) -> Remedy:
        if self.wanted:
            return Remedy(does="it is defined again, on the images that it wrote last")
        return Remedy(advice=f"`quiesce doctor {self.vm} --repair` defines it again, on the images that it wrote last;"
                    " --yes does so for every VM listed here")  # fmt: skip


@dataclass(frozen=True)
class DefinedAnew(Fault):
    same_vm: bool = True
    """Whether its name and its disks say that it is the VM that libvirt lost."""

    def remedy(self) -> Remedy:
        if self.same_vm:
            return Remedy(does=f"the checkpoints belong to {self.vm} as it is now")
        return Remedy(advice=f"do not start {self.vm}: it would overwrite checkpoints. Undefine it, and define the VM of its"
                    f" checkpoints again: quiesce doctor {self.subject} --repair")  # fmt: skip


@dataclass(frozen=True)
class UnreadableDirectory(Fault):
    def remedy(self) -> Remedy:
        return Remedy(advice="mount it, or start its storage pool; nothing is given up while it cannot be read")


@dataclass(frozen=True)
class WrongDefinition(Fault):
    """A disk is not defined as the image that the VM wrote last."""

    astray: Astray | None = None

    def remedy(self) -> Remedy:
        assert self.astray is not None
        named, last, state = self.astray.named, self.astray.last, self.astray.state
        back = f"the definition gets {last} back as disk {self.astray.target}"
        if state in (AstrayState.GONE, AstrayState.UNWRITTEN):
            return Remedy(does=back)
        stay = Choice(last, f"{self.vm} keeps {named}; {last} goes into the quarantine", f"what {self.vm} wrote to {last}")
        if state is AstrayState.RUNNING:
            return Remedy(None, (stay,), f"power {self.vm} off; `quiesce doctor {self.vm}` then says how to go back to {last}")
        return Remedy(None, (stay, Choice(named, f"{back}; {named} stays where it is", f"what was written to {named} since")))


@dataclass(frozen=True)
class Renamed(Fault):
    def remedy(self) -> Remedy:
        return Remedy(does=f"the checkpoints are recorded under the name {self.vm}")


@dataclass(frozen=True)
class LostFiles(Fault):
    """A checkpoint can no longer be restored. `subject`: its name."""

    readable: bool = True
    """Whether every directory of the VM's images can be read."""

    def remedy(self) -> Remedy:
        if not self.readable:
            return Remedy(advice="first make every directory readable: the files may be there")
        choice = Choice(self.subject, "the checkpoint leaves the catalog; its remaining files go into the quarantine",
                        f"checkpoint {self.subject!r}")  # fmt: skip
        return Remedy(choices=(choice,), advice="bring the files back, for example from a backup that keeps their times")


@dataclass(frozen=True)
class Overwritten(Fault):
    """The VM writes an image of a checkpoint, or will at its next start. `subject`: the checkpoint's name."""

    written: bool = True
    """False: nobody wrote to the image yet."""

    def remedy(self) -> Remedy:
        if not self.written:
            how = f"`quiesce restore {self.vm}@{self.subject} --discard-current`"
            return Remedy(advice=f"do not start {self.vm}; {how} gives it an image of its own, with this content")
        choice = Choice(self.subject, "the checkpoint leaves the catalog; its images stay while others need them",
                        f"checkpoint {self.subject!r}, whose content is not there any more")  # fmt: skip
        return Remedy(choices=(choice,))


@dataclass(frozen=True)
class ChangedImage(Fault):
    """An image of a checkpoint is not, or may not be, what was checkpointed. Nothing makes a spoilt checkpoint good again."""

    settle: bool = False
    """A digest of its content can tell."""

    def remedy(self) -> Remedy:
        if self.settle:
            return Remedy(advice=f"`quiesce verify {self.vm}@CHECKPOINT --content` reads the image, and settles that")
        return Remedy(does="the labels are lowered for good; no image is touched")


@dataclass(frozen=True)
class OtherBase(Fault):
    actual: str | None = None
    """Id of the checkpoint that the VM is based on, by its images."""

    def remedy(self) -> Remedy:
        return Remedy(does="the catalog records what the images say; no image is touched")


@dataclass(frozen=True)
class ForeignSnapshots(Fault):
    def remedy(self) -> Remedy:
        return Remedy(advice=f"see `virsh snapshot-list {self.vm}`; delete them, or only their records with --metadata")


@dataclass(frozen=True)
class WrongManifest(Fault):
    def remedy(self) -> Remedy:
        return Remedy(does="it is written again")


@dataclass(frozen=True)
class StrayManifest(Fault):
    """A manifest of a checkpoint that the catalog lacks. `subject`: its path."""

    whole: bool = True
    """Whether the images that it describes are there."""
    sealed: bool = True

    def remedy(self) -> Remedy:
        if self.whole:
            return Remedy(advice=f"`quiesce catalog rebuild{'' if self.sealed else ' --accept-unsigned'}` adds the checkpoint")
        return Remedy(
            choices=(Choice(self.subject, "it goes into the quarantine", "the record of a checkpoint without images"),)
        )


@dataclass(frozen=True)
class UnneededFile(Fault):
    """A file of ours that may be removed: the evidence is in `known`. `subject`: its path."""

    def remedy(self) -> Remedy:
        return Remedy(does="it goes into the quarantine")


@dataclass(frozen=True)
class UnexplainedFile(Fault):
    """A file of ours that no record names, and of which nothing says that it may go. `subject`: its path."""

    used: str | None = None
    """Who uses it all the same."""

    def remedy(self) -> Remedy:
        if self.used:
            return Remedy(advice=f"{self.used}; quiesce leaves it alone", wrong=False)
        return Remedy(choices=(Choice(self.subject, "it goes into the quarantine", "what was written to it"),))


@dataclass(frozen=True)
class ExpiredFile(Fault):
    """A file whose time in the quarantine is over. `subject`: its path there."""

    def remedy(self) -> Remedy:
        return Remedy(does="it is removed for good", wrong=False)


@dataclass(frozen=True)
class Unmerged(Fault):
    def remedy(self) -> Remedy:
        return Remedy(does="they are merged, as the deletion that was asked for; all other checkpoints keep their content")


@dataclass(frozen=True)
class LongChain(Fault):
    """`subject`: the disk's target."""

    def remedy(self) -> Remedy:
        return Remedy(does="a copy of a part of the chain makes it shorter; every checkpoint keeps its content")


@dataclass(frozen=True)
class IncompleteGroup(Fault):
    """`subject`: GROUP@CHECKPOINT."""

    def remedy(self) -> Remedy:
        return Remedy(wrong=False, advice="each part that is left can be restored by itself, and deleted with"
                    f" `quiesce group delete {self.subject}`")  # fmt: skip
