"""The errors of quiesce. Each class has an exit code; each error a message and, where there is one, a hint.

    QuiesceError ........................ 1   a failure without a code of its own
    ├── CatalogDamagedError ............. 1   the file of the catalog is no database any more
    ├── CatalogReadOnlyError ............ 1   the catalog can be read, but not written
    ├── UsageError ...................... 2   the command line does not make sense
    ├── NotFoundError ................... 3   no such VM, checkpoint
    ├── RefusedError .................... 4   the VM, as it is, cannot be checkpointed, restored, ...
    │   ├── NameTakenError .............. 4
    │   ├── DivergenceError ............. 4   other servers would disagree with the restored ones
    │   └── NoSpaceError ................ 7   the storage has too little free space
    ├── AgentError ...................... 5   the guest has no agent, or the agent is too old, or its answer is not valid
    ├── ConsistencyError ................ 6   the checkpoint would be less than --require; nothing was kept
    ├── HypervisorError ................. 8   libvirt failed or cannot be reached
    │   ├── OutcomeUnknownError ......... 8   libvirt has not returned; nobody knows yet whether the call took effect
    │   └── SilentStorageError .......... 8   a storage does not answer
    ├── BusyError ....................... 9   another operation holds the lock of the VM, or libvirt is busy with the VM
    ├── ProofError ...................... 12  booted aside, the checkpoint is not what it claims to be, or does not start
    └── CancelledError .................. 130 the user, or the service, cancelled the operation

The codes are an interface: docs/exit-codes.md, tests/unit/test_errors.py.
"""

from __future__ import annotations

from typing import Any


class QuiesceError(Exception):
    """Base of all errors that a user may see. After any of them the guest runs, unless the message says otherwise."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    @property
    def kind(self) -> str:
        """The name by which programs tell errors apart. Example: `notfound` for NotFoundError."""
        return type(self).__name__.removesuffix("Error").lower() or "error"


class CatalogDamagedError(QuiesceError):
    pass


class CatalogReadOnlyError(QuiesceError):
    pass


class UsageError(QuiesceError):
    exit_code = 2


class NotFoundError(QuiesceError):
    exit_code = 3


class RefusedError(QuiesceError):
    exit_code = 4


class NameTakenError(RefusedError):
    pass


class DivergenceError(RefusedError):
    pass


class NoSpaceError(RefusedError):
    exit_code = 7


class AgentError(QuiesceError):
    exit_code = 5


class ConsistencyError(QuiesceError):
    exit_code = 6


class HypervisorError(QuiesceError):
    exit_code = 8


class OutcomeUnknownError(HypervisorError):
    pass


class SilentStorageError(HypervisorError):
    pass


class BusyError(QuiesceError):
    exit_code = 9


class ProofError(QuiesceError):
    exit_code = 12


class CancelledError(QuiesceError):
    exit_code = 130
