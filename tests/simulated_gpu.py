"""A device that behaves as a CUDA device does, on any machine: what would fail on a GPU, or wait for it, does so here.

Its tensors lie in ordinary memory, but are on a device of their own (PyTorch's place for backends of others), so that
numpy cannot read them and that they mix with tensors of the CPU as little as CUDA's do. Every operation comes by
`SimulatedGPU.run`, which counts what waits for the device, and can be recorded and replayed as in a CUDA graph. The
arithmetic is the CPU's: nothing is learned of speed, of rounding, or of what CUDA's own kernels do.
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
aten = torch.ops.aten
COPIES = {aten._copy_from, aten._copy_from_and_resize}
#: Operations that let the host wait until the device is done, beside copies between the two.
WAITS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount, aten.repeat_interleave),
    *(aten.unique_consecutive, aten.unique_dim, aten._unique2, aten._linalg_svd, aten._linalg_eigh),
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # whose indices may be on the CPU
#: DLPack's numbers for the device and for dtypes that are neither signed integers (0), floats (2) nor complex (5).
FOREIGN, CODES = 12, {torch.bool: 6, torch.uint8: 1}


class _Kind(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Array(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("kind", _Kind),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """``DLManagedTensor`` of DLPack, the door through which memory can be said to be on another device.

    Its deleter is none: it would be called in the middle of whatever gives up the last reference, an exception even.
    """

    _fields_ = [("array", _Array), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class SimulatedGPU:
    """The device; a process has one, `GPU`.

    Attributes:
        operations: How many it was asked for since `watch`.
        waits: Names of those that let the host wait.
        recorded, replayed: How many graphs have been.
    """

    def __init__(self) -> None:
        _setup_privateuseone_for_python_backend(NAME)
        self.device = torch.device(NAME, 0)
        self.recording: Graph | None = None
        #: By address: the memory, and all of it as tensors of the device, with what DLPack points to.
        self._memory: dict[int, tuple[torch.UntypedStorage, list[tuple[Any, ...]]]] = {}
        self._all, self._some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        self._all.fallback(self.run, "PrivateUse1")
        # Convolutions have names of their own on foreign devices.
        self._some.impl("convolution_overrideable", partial(self.run, aten.convolution.default), "PrivateUse1")
        self._some.impl("convolution_backward_overrideable", self._convolution_backward, "PrivateUse1")
        for name in ("_conj", "_neg_view"):  # views that say what is yet to be done
            self._some.impl(name, self._refuse_lazy, "PrivateUse1")
        self.watch()

    def watch(self) -> None:
        """Begin to count."""
        self.waits: list[str] = []
        self.operations = self.recorded = self.replayed = 0

    def run(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Do what PyTorch asks of the device."""
        self.operations += 1
        kind = op.overloadpacket
        if kind is aten.set_ and isinstance(args[1], torch.UntypedStorage):
            tensor, memory, *place = args
            empty = torch.empty(0, dtype=tensor.dtype)
            tensor.data = self._placed(empty.set_(self._memory[memory.data_ptr()][0], *place), {})
            return tensor
        tensors = _tensors((args, *kwargs.values()))
        here = {_address(t): t for t in tensors if holds(t)}
        placed = kwargs["device"].type == NAME if kwargs.get("device") is not None else bool(here)
        if kind in COPIES:
            op, args = aten.copy_.default, (args[1], args[0])
        written = _written(op, args, kwargs)
        self._check(kind, args, tensors, written, crosses={*map(holds, tensors), placed} == {True, False})
        changed = {id(t) for t in written}
        seen = {id(t): self._seen(t, id(t) not in changed) for t in tensors}
        args = _each(args, lambda t: seen[id(t)])
        kwargs = {k: _each(v, lambda t: seen[id(t)]) for k, v in kwargs.items() if k != "pin_memory"}
        if "device" in _arguments(op):
            kwargs["device"] = torch.device("cpu")
        call = partial(op, *args, **kwargs)
        if self.recording is None:
            found = call()
        else:
            found = self.recording.record(call, [seen[id(t)] for t in written], set(here))
        for t in written:
            if holds(t) and t.shape != seen[id(t)].shape:  # what was given for the outcome has grown
                t.data = self._placed(seen[id(t)], here)
        given = {id(seen[id(t)]): t for t in tensors}
        if not placed:
            return found
        return _each(found, lambda t: given[id(t)] if id(t) in given else self._placed(t, here))

    def copied(self, memory: torch.UntypedStorage) -> torch.UntypedStorage:
        """A copy of some memory of the device."""
        return self._whole(self._memory[memory.data_ptr()][0].clone(), torch.uint8).untyped_storage()

    def _refuse_lazy(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError("the simulated device has no lazy conjugates: use torch.conj_physical")

    def _convolution_backward(self, grad: Tensor, inputs: Tensor, weight: Tensor, *options: Any) -> Any:
        return self.run(aten.convolution_backward.default, grad, inputs, weight, [grad.shape[1]], *options)

    def _check(self, kind: Any, args: Any, tensors: list[Tensor], written: list[Tensor], crosses: bool) -> None:
        """Count what waits, and refuse what CUDA refuses."""
        if (crosses and kind in COPIES) or kind in WAITS:
            if self.recording is not None:
                raise RuntimeError(f"{kind}: operation not permitted when stream is capturing")
            self.waits.append(str(kind).removeprefix("aten."))
        if kind in COPIES:
            return
        if any(map(holds, tensors)) and not all(map(holds, written)):
            raise RuntimeError(f"{kind}: Expected the outcome to be on the same device")
        if kind in INDEXED:
            tensors = [t for i, t in enumerate(args) if i != 1 and isinstance(t, Tensor)]
        if any(map(holds, tensors)) and any(t.ndim and not holds(t) for t in tensors):
            where = ", ".join(str(t.device) for t in tensors)
            raise RuntimeError(f"{kind}: Expected all tensors to be on the same device, but found {where}")

    def _seen(self, tensor: Tensor, only_read: bool) -> Tensor:
        """The tensor of the CPU over the same memory; a single number of the CPU becomes a constant of the call."""
        if not holds(tensor):
            return tensor.clone() if only_read and tensor.ndim == 0 else tensor
        if not tensor.numel():
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        memory = self._memory[_address(tensor)][0]
        place = tensor.storage_offset(), tensor.size(), tensor.stride()
        return torch.empty(0, dtype=tensor.dtype).set_(memory, *place)

    def _placed(self, tensor: Tensor, here: dict[int, Tensor]) -> Tensor:
        """The tensor of the device over the same memory: a view of what is `here` where that is the same."""
        if tensor.untyped_storage().nbytes() < tensor.element_size():  # nothing in it, so no address
            memory = torch.empty(1, dtype=tensor.dtype).untyped_storage()
            tensor = torch.empty(0, dtype=tensor.dtype).set_(memory, 0, tensor.size(), tensor.stride())
        base = here.get(_address(tensor))
        if base is None or base.dtype is not tensor.dtype:
            base = self._whole(tensor.untyped_storage(), tensor.dtype)
        offset = tensor.storage_offset() - base.storage_offset()
        return torch._C._dynamo.guards._reinterpret_tensor(base, tensor.size(), tensor.stride(), offset)

    def _whole(self, memory: torch.UntypedStorage, dtype: torch.dtype) -> Tensor:
        """All of some memory as a tensor of the device."""
        code = CODES.get(dtype, 5 if dtype.is_complex else 2 if dtype.is_floating_point else 0)
        kind = _Kind(code, 8 * dtype.itemsize, 1)
        shape, managed = (ctypes.c_int64 * 1)(memory.nbytes() // dtype.itemsize), _Managed()
        managed.array = _Array(memory.data_ptr(), (ctypes.c_int32 * 2)(FOREIGN, 0), 1, kind, shape)
        base = torch._C._from_dlpack(_capsule(ctypes.addressof(managed), b"dltensor", None))
        self._memory.setdefault(memory.data_ptr(), (memory, []))[1].append((base, managed, shape))
        return base

    def sweep(self) -> None:
        """Give back the memory that nothing uses any more; between two tests, while nothing else goes on."""
        for address, (_, given) in list(self._memory.items()):
            given[:] = [each for each in given if _used(each[0])]
            if not given:
                del self._memory[address]


class Graph:
    """``torch.cuda.CUDAGraph`` of the simulated device."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[], Any], list[Tensor]]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def record(self, call: Callable[[], Any], written: Sequence[Tensor], given: set[int]) -> Any:
        """Note an operation, which memory it writes to and was given, and where its outcome lies."""
        for tensor in written:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._own and memory.data_ptr() not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(memory, 0, (memory.nbytes(),), (1,))
                self._before[memory.data_ptr()] = whole, whole.clone()
        found = call()
        results = _tensors(found)
        self._own |= {_address(t) for t in results} - given
        self._calls.append((call, results))
        return found

    def restore(self) -> None:
        """Put back what there was before the recording, which computes nothing."""
        for tensor, before in self._before.values():
            tensor.copy_(before)

    def replay(self) -> None:
        """Do it all again."""
        GPU.replayed += 1
        for call, results in self._calls:
            for old, new in zip(results, _tensors(call()), strict=True):
                if _address(old) != _address(new):
                    old.copy_(new)


class Generator(torch.Generator):
    """Of any device; PyTorch has none of this one."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        """One of the CPU, which says that it is of the device."""
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        """As asked for."""
        return self.where


@contextmanager
def _recording(graph: Graph) -> Iterator[None]:
    GPU.recording = graph
    GPU.recorded += 1
    try:
        yield
    finally:
        GPU.recording = None
        graph.restore()


def holds(tensor: Any) -> bool:
    """Whether a tensor is on this device."""
    return tensor.device.type == NAME


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _used(base: Tensor) -> bool:
    """Whether anything but this tensor refers to its memory."""
    memory = base.untyped_storage()
    return torch._C._storage_Use_Count(memory._cdata) > 2 or sys.getrefcount(memory) > 3  # C++ has one of its own


def _tensors(value: Any) -> list[Tensor]:
    """All that are in arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same with a function applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_each(part, function) for part in value) if type(value) in (list, tuple) else value


@cache
def _arguments(op: Any) -> dict[str, bool]:
    """Names of the arguments in their order, and whether they are written to; of statistics no schema says it."""
    return {
        a.name: a.name in ("running_mean", "running_var") or (a.alias_info is not None and a.alias_info.is_write)
        for a in op._schema.arguments
    }


def _written(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    named = dict(zip(_arguments(op), args, strict=False)) | kwargs
    return _tensors([named.get(name) for name, changed in _arguments(op).items() if changed])


#: Made with the first import: PyTorch looks once, at the first gradient of a process, for the devices there are.
GPU = SimulatedGPU()


@pytest.fixture
def gpu(monkeypatch):
    """The simulated device, which whoever asks for CUDA gets; counting from now on."""
    clone = torch.UntypedStorage.clone
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Tensor, "is_cuda", property(holds), raising=False)
    monkeypatch.setattr(torch.UntypedStorage, "clone", lambda m: GPU.copied(m) if holds(m) else clone(m))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", _recording)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: GPU.recording is not None)
    answers = {
        "is_available": True,
        "auto_device_count": 1,
        "parse_devices": [0],
        "get_parallel_devices": [GPU.device],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(CUDAAccelerator, name, staticmethod(lambda *_, answer=answer: answer))
    for name in ("setup_device", "setup", "teardown"):
        monkeypatch.setattr(CUDAAccelerator, name, lambda *_: None)
    gc.collect()
    GPU.sweep()
    GPU.watch()
    return GPU
