"""Every moment at which a real training may die: each phase of a step, of an evaluation, and each call that changes the disk.

Moments are counted a kind at a time, calls on the disk a thread at a time, so that the same moment comes again in every
run of the same config, however its threads take turns. Hooks are torch's own, and change no value.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

IN_TRAINING = {"look", "forward", "backward", "update begins", "updated", "EMA", "evaluation"}
"""Kinds that every training has: were a hook not called, its moments would be tried no more, and nobody told."""
CALLS = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "rmdir")


class Moment(NamedTuple):
    """The `number`-th time (from 1) that something of this kind is about to happen."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


class Moments:
    """Counts the moments of this process, and ends it with SIGKILL at one of them; to be installed before training."""

    def __init__(self, root: str, die: Moment | None) -> None:
        self.counts: Counter[str] = Counter()
        self._root, self._die = os.path.join(root, ""), die
        self._pid = os.getpid()
        self._paths: dict[int, str] = {}
        self._real: dict[str, Any] = {name: getattr(os, name) for name in (*CALLS, "close")}

    def all(self) -> list[Moment]:
        return [Moment(kind, number + 1) for kind, count in sorted(self.counts.items()) for number in range(count)]

    def install(self) -> None:
        self._watch_link()
        self._watch_training()
        for name in CALLS:
            setattr(os, name, self._on_disk(name))
        os.close = self._close  # type: ignore[assignment]

    def come(self, kind: str, last_word: Callable[[], object] = lambda: None) -> None:
        """A moment is here: the process goes on, or says its last word and dies."""
        if os.getpid() != self._pid:  # a loader process, forked from this one
            return
        self.counts[kind] += 1
        if self._die == (kind, self.counts[kind]):
            last_word()
            os.kill(self._pid, signal.SIGKILL)

    def _watch_link(self) -> None:
        """The engine looks at the link once before each step and once after each validation batch."""
        from sports_ray.engine.link import InProcessLink

        look = InProcessLink.should_stop

        def should_stop(link: InProcessLink) -> str:
            # Who waits for the disk looks as often as there is time for: those looks come in other numbers each time.
            if sys._getframe(1).f_code.co_name != "_patient":
                self.come("look")
            return look(link)

        InProcessLink.should_stop = should_stop  # type: ignore[method-assign]

    def _watch_training(self) -> None:
        import torch
        from torch.nn.modules.module import register_module_forward_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        def forward(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(module, torch.nn.Linear):
                return
            self.come("forward" if module.training else "evaluation")
            if output.requires_grad:
                output.register_hook(lambda gradient: self.come("backward"))

        register_module_forward_hook(forward)
        register_optimizer_step_pre_hook(lambda *_: self.come("update begins"))
        register_optimizer_step_post_hook(lambda *_: self.come("updated"))
        average = torch._foreach_lerp_

        def lerp(*args: Any, **kwargs: Any) -> Any:
            self.come("EMA")
            return average(*args, **kwargs)

        # AdamW is one fused kernel: the steps of Python within an update are its begin, its end, and the EMA after it.
        torch._foreach_lerp_ = lerp  # type: ignore[assignment]

    def _on_disk(self, name: str) -> Callable[..., Any]:
        """The call, counted where it is about to change something in the store; a write that dies has written half."""
        real = self._real[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            path = self._place(args[0], kwargs)
            if path.startswith(self._root) and not (name == "open" and not args[1] & os.O_CREAT):
                half = (lambda: real(args[0], bytes(args[1])[: len(args[1]) // 2])) if name == "write" else lambda: None
                self.come(f"{threading.current_thread().name} {name}", half)
            result = real(*args, **kwargs)
            if name == "open":
                self._paths[result] = path
            return result

        return call

    def _place(self, path: Any, kwargs: dict[str, Any]) -> str:
        if isinstance(path, int):
            return self._paths.get(path, "")
        folder = kwargs.get("dir_fd")
        return os.path.join(self._paths.get(folder, ""), path) if folder is not None else os.fsdecode(path)

    def _close(self, handle: int) -> None:
        self._paths.pop(handle, None)
        self._real["close"](handle)
