"""A GPU that is not there: device `fake`, whose memory is that of the host, for a process of its own.

Every operation on its tensors is done by the CPU, after what a GPU would refuse (tensors and generators of
another device) has been refused, and what it would be waited for has been written down, with the line of ours that
caused it. Copies that do not block are made as late as they can be: at the next wait. It says nothing about
kernels, streams or speed.
"""

import collections
import contextlib
import ctypes
import functools
import sys
import threading
from pathlib import Path

import torch
import torch.utils.backend_registration as registration

ROOT = Path(__file__).resolve().parent.parent
NAME = "fake"
TOLD = (ROOT / "tests", ROOT / ".venv")
"""What lies there is not ours"""
LIBRARIES = ("transformers", "accelerate")
"""Which may wait as well"""
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2"),
    *("unique_dim", "unique_consecutive", "repeat_interleave.Tensor"),
}
"""Operations whose result, or its size, the host has to know"""
INDEXING = ("index", "_index_put_impl_")
"""Operations that take indices from the host"""
TAKING_NUMBERS = ("fill_", "masked_fill_", "masked_fill", "floor_divide", "remainder")
"""Which also take tensors of one number from the CPU, beside all that are tagged as pointwise"""
ON_CPU, ON_FAKE = 1, 12  # DLPack's kDLCPU and kDLExtDev

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Log:
    """What was waited for: how often, by (what, line of ours)."""

    def __init__(self):
        self.waits = collections.Counter()
        self.silence = threading.local()
        self.to_host = []
        """(target, values) of copies that have not been waited for"""
        self.to_device = []
        """(pinned source, its values) of such copies"""
        self._lock = threading.Lock()

    def begin(self):
        """Count anew; gives the counter."""
        self.waits = collections.Counter()
        return self.waits

    def later(self, on_their_way, tensor, values):
        """Keep a copy for the next wait, which may be another thread's and going on now."""
        with self._lock:
            on_their_way.append((tensor, values.clone()))

    def wait(self, what):
        """The host waits for the device; whatever was on its way has arrived."""
        if not getattr(self.silence, "kept", False):
            self.waits[what, line_of_ours()] += 1
        with self._lock:  # nobody goes on before all is there
            for target, values in self.to_host:
                target.copy_(values)
            read = list(self.to_device)
            self.to_host.clear()
            self.to_device.clear()
        if any(not torch.equal(source, values) for source, values in read):
            raise RuntimeError("pinned memory was changed while it was being copied")


LOG = Log()
PINNED = {}
"""Pinned tensors by their address; they are kept, so that it stays theirs"""


@contextlib.contextmanager
def silence():
    """Nothing that this thread waits for in this block is counted."""
    LOG.silence.kept = True
    try:
        yield
    finally:
        LOG.silence.kept = False


def line_of_ours():
    """`file:function` of the innermost frame of ours, or of a library's that is called by it."""
    node = torch._C._current_autograd_node()
    if (
        node is not None
    ):  # the stack of the backward pass says nothing; the forward pass left its own
        for entry in reversed(node.metadata.get("traceback_", [])):
            file, _, rest = entry.strip().removeprefix('File "').partition('"')
            if name := named(file):
                return f"backward of {name}:{rest.split(' in ')[1].split()[0]}"
        return "backward"
    frame = sys._getframe()
    while frame is not None:
        if name := named(frame.f_code.co_filename):
            return f"{name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "nobody of ours"


def named(file):
    """The short name of a file that is ours or a library's, None of any other."""
    path = Path(file)
    for library in LIBRARIES:
        if library in path.parts and "site-packages" in path.parts:
            return f"{library}/{path.name}"
    if path.is_relative_to(ROOT) and not any(path.is_relative_to(place) for place in TOLD):
        return path.relative_to(ROOT).as_posix()
    return None


def is_fake(value):
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def _named_as(tensor, device):
    """The same memory, as a tensor of another device."""
    capsule = torch._C._to_dlpack(tensor.detach())
    # DLTensor: a pointer to the data, then the kind of device.
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + 8).value = device
    return torch._C._from_dlpack(capsule)


def on_cpu(tensor):
    """A CPU tensor on the memory of a fake one."""
    return _named_as(tensor, ON_CPU) if is_fake(tensor) else tensor


def on_fake(tensor):
    return _named_as(tensor, ON_FAKE)


def mapped(change, value, kinds=torch.Tensor):
    """The same with `change` done to what is of these kinds, also inside of lists."""
    if isinstance(value, kinds):
        return change(value)
    return [mapped(change, v, kinds) for v in value] if isinstance(value, list | tuple) else value


@functools.cache
def facts(op):
    """Its name, without and with its overload, places of its tensors, and names of those that it writes into."""
    schema = op._schema
    name = schema.name.removeprefix("aten::")
    full = f"{name}.{schema.overload_name}".rstrip(".")
    tensors = [n for n, arg in enumerate(schema.arguments) if str(arg.type) == "Tensor"]
    return name, full, tensors, [arg.name for arg in schema.arguments if arg.is_out]


def kernel(op, *args, **kwargs):
    """Any operation on fake tensors."""
    name, full, places, outs = facts(op)
    if name == "_copy_from":
        return copy(*args, **kwargs)
    args = list(args)
    for place in places:  # numbers among tensors arrive as numbers, which only some operations take
        if place < len(args) and isinstance(args[place], int | float):
            args[place] = torch.tensor(args[place])
    given = []
    mapped(given.append, [args, list(kwargs.values())], (torch.Tensor, torch.Generator))
    refuse_mixed(op, name, full, given, args)
    if name in WAITING or full in WAITING:
        LOG.wait(name)
    elif name in INDEXING and name != "index":  # which copies for itself
        wait_for_indices(args[1])
    return done_on_cpu(op, args, kwargs, [out for out in outs if out in kwargs])


def done_on_cpu(op, args, kwargs, outs):
    """What the operation gives on the same memory; tensors that it changed are those that were given."""
    fake = {}

    def translated(tensor):
        cpu = on_cpu(tensor)
        fake[id(cpu)] = (tensor, cpu)
        return cpu

    cpu_args = mapped(translated, args)
    cpu_kwargs = {name: mapped(translated, value) for name, value in kwargs.items()}
    if is_fake_device(kwargs.get("device")):
        cpu_kwargs["device"] = torch.device("cpu")
    cpu_kwargs.pop("pin_memory", None)
    small = [name for name in outs if is_fake(kwargs[name]) and not kwargs[name].numel()]
    cpu_kwargs |= {name: torch.empty(0, dtype=kwargs[name].dtype) for name in small}
    result = op(*cpu_args, **cpu_kwargs)
    if small:  # its memory could not grow
        for name in small:
            kwargs[name].data = on_fake(cpu_kwargs[name])
        return tuple(kwargs[name] for name in outs) if len(outs) > 1 else kwargs[outs[0]]
    back = mapped(lambda t: fake[id(t)][0] if id(t) in fake else on_fake(t), result)
    return tuple(back) if isinstance(result, tuple) else back


def convolution_backward(gradient, values, weight, *rest):
    """The way back of a convolution; that of its bias has none of its own here."""
    *geometry, mask = rest
    sizes = [weight.shape[1] * geometry[-1] if geometry[3] else weight.shape[0]]
    back = torch.ops.aten.convolution_backward.default
    return kernel(back, gradient, values, weight, sizes, *geometry, mask)


def is_fake_device(device):
    return device is not None and torch.device(device).type == NAME


def refuse_mixed(op, name, full, given, args):
    """What a GPU does not take.

    Raises:
        RuntimeError: for tensors or generators of another device; numbers on the CPU may stand among tensors where
            CUDA lets them.
    """
    for value in given:
        if value.device.type == NAME:
            continue
        if isinstance(value, torch.Generator):
            raise RuntimeError(f"{full}: expected a {NAME} generator, found one of {value.device}")
        pointwise = torch.Tag.pointwise in op.tags or name in TAKING_NUMBERS
        index = name in INDEXING and any(value is i for i in args[1])
        if not index and not (value.dim() == 0 and pointwise):
            raise RuntimeError(
                f"{full}: expected all tensors on {NAME}, found one on {value.device}"
            )


def wait_for_indices(indices):
    for index in indices:
        if index is not None and (not is_fake(index) or index.dtype in (torch.bool, torch.uint8)):
            LOG.wait("a mask as an index" if is_fake(index) else "an index on the CPU")


def copy(source, target, non_blocking=False):
    """Between the devices, or on the fake one."""
    values, place = on_cpu(source), on_cpu(target)
    if is_fake(source) and is_fake(target) or not source.numel():
        place.copy_(values)
    elif not non_blocking or not pinned(target if is_fake(source) else source):
        LOG.wait("a copy" if not non_blocking else "a copy of memory that is not pinned")
        place.copy_(values)
    elif is_fake(source):
        target.fill_(torch.nan if target.is_floating_point() else 99)
        LOG.later(LOG.to_host, target, values)
    else:
        place.copy_(values)
        LOG.later(LOG.to_device, source, values)
    return target


def pinned(tensor, device=None):
    return not is_fake(tensor) and tensor.untyped_storage().data_ptr() in PINNED


def pin(tensor, device=None):
    if pinned(tensor):
        return tensor
    copied = tensor.clone(memory_format=torch.contiguous_format)
    PINNED[copied.untyped_storage().data_ptr()] = copied
    return copied


def _patched(original):
    """`torch.empty` and its kin, which know of pinned memory."""

    def made(*args, pin_memory=False, **kwargs):
        tensor = original(*args, **kwargs)
        return pin(tensor) if pin_memory else tensor

    return made


def _set_item(original):
    """As CUDA has it: a number goes to the device as a copy that is waited for, if it does not fill a slice or a
    mask (`valueToTensor`, `copy_to` and `_index_put_impl_` of ATen)."""

    def set_item(tensor, index, value):
        if is_fake(tensor) and not is_fake(value) and not getattr(value, "ndim", 0):
            parts = index if isinstance(index, tuple) else (index,)
            tensors = [part for part in parts if isinstance(part, torch.Tensor)]
            masks = [part for part in tensors if part.dtype == torch.bool]
            one = len(tensors) == 0 and tensor[index].dim() == 0
            if one or (tensors and len(masks) < len(tensors)):
                LOG.wait("a number into chosen places")
            elif masks:
                tensor.masked_fill_(*masks, value)
                return
        original(tensor, index, value)

    return set_item


class Module(registration._DummyBackendModule):
    """`torch.fake`."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)


_libraries = []


def install():
    """Make device `fake` the accelerator of this process."""
    registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(kernel, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    forward = functools.partial(kernel, torch.ops.aten.convolution.default)
    aten.impl("convolution_overrideable", forward, "PrivateUse1")
    aten.impl("convolution_backward_overrideable", convolution_backward, "PrivateUse1")
    _libraries.extend([library, aten])  # which end what they registered
    # As on CUDA, a module keeps its parameters when it moves: an optimizer knows them already.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Tensor.pin_memory, torch.Tensor.is_pinned = pin, pinned
    torch.empty, torch.empty_like = _patched(torch.empty), _patched(torch.empty_like)
    torch.Tensor.__setitem__ = _set_item(torch.Tensor.__setitem__)
    torch.accelerator.synchronize = lambda device=None: LOG.wait("synchronize")
    # The lines of the forward pass are kept for the backward pass, whose values are not looked at.
    anomaly = torch.autograd.set_detect_anomaly
    torch.autograd.set_detect_anomaly = lambda mode: anomaly(True, check_nan=False)
