"""Model files of others: what is data is read as it is, and nothing else is read at all, let alone run."""

import io
import pickle
import resource
import struct
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from bench import checkpoints
from bench.checkpoints import MAGIC, checkpoint, read
from bench.errors import UserError
from bench.models import preactresnet18, resnet18, resnet50, wideresnet
from bench.naming import pour
from bench.pieces import zipped


def archive(pickled, parts=(), how=zipfile.ZIP_STORED, top="archive"):
    """What torch.save writes, around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file:
        file.writestr(f"{top}/data.pkl", pickled)
        file.writestr(f"{top}/version", "3\n")
        for name, data in parts:
            file.writestr(f"{top}/{name}", data)
    return out.getvalue()


def said(value):
    """The pickle codes that make a plain value, to be put inside another pickle."""
    return pickle.dumps(value, 2)[2:-1]


def call(module, name, *arguments):
    return b"c%s\n%s\n" % (module.encode(), name.encode()) + b"(" + b"".join(map(said, arguments)) + b"tR"


def whole(codes):
    return b"\x80\x02" + codes + b"."


def storage(count, kind="FloatStorage", key="0"):
    return b"(X\x07\x00\x00\x00storagectorch\n%s\n" % kind.encode() + said(key) + said("cpu") + said(count) + b"tQ"


def tensor(count, shape, strides, offset=0, more=b"", **kind):
    hooks = b"ccollections\nOrderedDict\n)R"
    inner = storage(count, **kind) + b"".join(map(said, (offset, shape, strides, False))) + hooks + more
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"tR"


def named(codes):
    return whole(b"}" + said("w") + codes + b"s")


GADGETS = {  # what would run: (module, name, arguments); MARK is a file that it would make
    "os.system": ("os", "system", "touch MARK"),
    "posix.system": ("posix", "system", "touch MARK"),
    "os.popen": ("os", "popen", "touch MARK"),
    "os.mkdir": ("os", "mkdir", "MARK"),
    "os.execlp": ("os", "execlp", "touch", "touch", "MARK"),
    "posix.open": ("posix", "open", "MARK", 65),
    "subprocess.Popen": ("subprocess", "Popen", ["touch", "MARK"]),
    "subprocess.check_output": ("subprocess", "check_output", ["touch", "MARK"]),
    "eval": ("builtins", "eval", "open('MARK','w')"),
    "exec": ("builtins", "exec", "open('MARK','w')"),
    "python 2's eval": ("__builtin__", "eval", "open('MARK','w')"),
    "open": ("builtins", "open", "MARK", "w"),
    "io.open": ("io", "open", "MARK", "w"),
    "codecs.open": ("codecs", "open", "MARK", "w"),
    "compile": ("builtins", "compile", "open('MARK','w')", "x", "exec"),
    "getattr": ("builtins", "getattr", "x", "join"),
    "__import__": ("builtins", "__import__", "antigravity"),
    "importlib": ("importlib", "import_module", "antigravity"),
    "runpy": ("runpy", "run_path", "MARK.py"),
    "pathlib": ("pathlib", "Path", "MARK"),
    "Path.touch": ("pathlib", "Path.touch", "MARK"),
    "shutil.copy": ("shutil", "copy", "/etc/hostname", "MARK"),
    "shutil.rmtree": ("shutil", "rmtree", "MARK"),
    "ctypes": ("ctypes", "CDLL", "libc.so.6"),
    "webbrowser": ("webbrowser", "open", "file://MARK"),
    "socket": ("socket", "create_connection", ["127.0.0.1", 9]),
    "timeit": ("timeit", "timeit", "open('MARK','w')"),
    "cProfile": ("cProfile", "run", "open('MARK','w')"),
    "pdb": ("pdb", "run", "open('MARK','w')"),
    "code": ("code", "InteractiveInterpreter"),
    "pickle.loads": ("pickle", "loads", b"x"),
    "marshal.loads": ("marshal", "loads", b"x"),
    "types.FunctionType": ("types", "FunctionType"),
    "operator": ("operator", "methodcaller", "system", "touch MARK"),
    "functools": ("functools", "partial", "x"),
    "numpy.load": ("numpy", "load", "MARK"),
    "numpy's runstring": ("numpy.testing._private.utils", "runstring", "open('MARK','w')", {}),
    "numpy.memmap": ("numpy", "memmap", "MARK", "uint8", "w+"),
    "pandas": ("pandas", "read_pickle", "MARK"),
    "joblib": ("joblib", "load", "MARK"),
    "torch.load": ("torch", "load", "MARK"),
    "torch.save": ("torch", "save", 1, "MARK"),
    "torch.hub": ("torch.hub", "load", "MARK", "x"),
    "torch.jit": ("torch.jit", "load", "MARK"),
    "torch.ops": ("torch.ops", "load_library", "MARK"),
    "torch's cpp": ("torch.utils.cpp_extension", "load_inline", "MARK", "x"),
    "torch's storage from a file": ("torch", "UntypedStorage.from_file", "MARK", True, 8),
    "yaml": ("yaml", "unsafe_load", "!!python/object/apply:os.system ['touch MARK']"),
    "hydra": ("hydra.utils", "instantiate", {"_target_": "os.system", "command": "touch MARK"}),
    "ours": ("bench.files", "write", "MARK", "ran"),
    "torch knows it, a checkpoint needs it not: wrapper": ("torch._utils", "_rebuild_wrapper_subclass"),
    "torch knows it, a checkpoint needs it not: type": ("torch._tensor", "_rebuild_from_type_v2"),
    "torch knows it, a checkpoint needs it not: numpy": ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    "torch knows it, a checkpoint needs it not: bytearray": ("builtins", "bytearray", 10**12),
    "a codec that is no text's": ("_codecs", "encode", "x" * 9, "zip"),
    "an image": ("PIL.Image", "Image"),
}
BOMBS = {
    "more numbers than there are": archive(named(tensor(10**12, (10**12,), (1,))), [("data/0", b"\0" * 8)]),
    "a view of more than is there": archive(named(tensor(2, (10**6, 10**6), (0, 0))), [("data/0", b"\0" * 8)]),
    "a view past the end": archive(named(tensor(2, (2,), (1,), offset=1)), [("data/0", b"\0" * 8)]),
    "a negative offset": archive(named(tensor(2, (1,), (1,), offset=-1)), [("data/0", b"\0" * 8)]),
    "a negative shape": archive(named(tensor(2, (-1, -2), (1, 1))), [("data/0", b"\0" * 8)]),
    "a thousand axes": archive(named(tensor(2, (1,) * 1000, (1,) * 1000)), [("data/0", b"\0" * 8)]),
    "a stride of words": archive(named(tensor(2, ("a",), (1,))), [("data/0", b"\0" * 8)]),
    "one storage of two sizes": archive(
        whole(b"]" + tensor(2, (2,), (1,)) + b"a" + tensor(4, (4,), (1,)) + b"a"), [("data/0", b"\0" * 8)]
    ),
    "no such storage": archive(named(tensor(2, (2,), (1,), key="../../etc/passwd"))),
    "a storage of another size": archive(named(tensor(2, (2,), (1,))), [("data/0", b"\0" * 800)]),
    "quantised": archive(named(tensor(8, (8,), (1,), kind="QInt8Storage")), [("data/0", b"\0" * 8)]),
    "compressed": archive(named(tensor(2**24, (2**24,), (1,))), [("data/0", b"\0" * 2**26)], zipfile.ZIP_DEFLATED),
    "a compressed pickle": archive(whole(said("x" * 2**20)), how=zipfile.ZIP_DEFLATED),
    "a numpy array of 10^12": archive(named(b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
                                            + said((10**12,)) + said(b"b") + b"tR")),
    "a numpy array of objects": archive(named(call("numpy", "dtype", "O8", False, True))),
    "a dict with tuples as keys": archive(whole(b"}" + said(((1, 2), 3)) + said(1) + b"s")),
    "a tuple of tuples of tuples": archive(whole(b"}" + b"K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s")),
    "a memo of 2^31": archive(whole(b"Nr\xff\xff\xff\x7f")),
    "a word longer than the file": archive(b"\x80\x02X\xff\xff\xff\x7fa."),
    "an empty stack": archive(b"\x80\x02."),
    "a mark that is missing": archive(b"\x80\x02t."),
    "no end": archive(b"\x80\x02}"),
    "no pickle": archive(b"hello"),
    "something behind": archive(whole(b"}") + b"cos\nsystem\n"),
    "protocol 4": archive(pickle.dumps({"w": 1}, 4)),
    "INST": archive(whole(b"(S'touch MARK'\nios\nsystem\n")),
    "OBJ": archive(whole(b"(cos\nsystem\nS'touch MARK'\no")),
    "STACK_GLOBAL": archive(whole(said("os") + said("system") + b"\x93" + said("touch MARK") + b"\x85R")),
    "EXT1": archive(whole(b"\x82\x01")),
    "NEWOBJ": archive(whole(b"cpathlib\nPath\n" + said(("MARK",)) + b"\x81")),
    "a set": archive(whole(b"\x8f")),
    "BUILD of a dict": archive(whole(b"}" + said({"__class__": 1}) + b"b")),
    "TorchScript": archive(whole(b"}"), [("code/__torch__.py", "x"), ("constants.pkl", "x")]),
    "big-endian": archive(whole(b"}"), [("byteorder", "big")]),
    "a zip of something else": archive(whole(b"}"), top="word"),
    "two folders": archive(whole(b"}"), [("../other/data.pkl", whole(b"}"))]),
    "a plain pickle": pickle.dumps({"w": 1}, 2),
    "gzip": b"\x1f\x8b\x08\x00aaaaaaaaaa",
    "nothing": b"",
    "words": b"not a model at all, only words",
    "old: cut off": MAGIC + whole(b"M\xe9\x03") + whole(said({"little_endian": True})),
    "old: too many numbers": MAGIC + whole(b"M\xe9\x03") + whole(said({"little_endian": True}))
    + named(tensor(10**12, (1,), (1,))) + whole(said(["0"])) + struct.pack("<q", 10**12),
    "old: other numbers": MAGIC + whole(b"M\xe9\x03") + whole(said({"little_endian": True}))
    + named(tensor(2, (2,), (1,))) + whole(said(["0"])) + struct.pack("<q", 1) + b"\0" * 4,
    "old: big-endian": MAGIC + whole(b"M\xe9\x03") + whole(said({"little_endian": False}))
    + whole(b"}") + whole(b"]"),
    "old: a gadget for a machine": MAGIC + whole(b"M\xe9\x03") + whole(call("os", "system", "touch MARK")) + whole(b"}"),
    "safetensors: a header of 10^18 bytes": struct.pack("<Q", 10**18) + b"{}",
    "safetensors: a tensor past the end": struct.pack("<Q", 58) + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}   ',
}  # fmt: skip


EMPTY = {"a memo of 2^31", "a zip of something else", "two folders"}
"""Strange, but harmless to read: nothing is in them."""


def filled(value, mark):
    if isinstance(value, str):
        return value.replace("MARK", str(mark))
    return [filled(v, mark) for v in value] if isinstance(value, list) else value


@pytest.fixture
def mark(tmp_path):
    yield tmp_path / "marks" / "ran"


@pytest.fixture
def guard_alone(monkeypatch):
    """Nothing of what is refused gets as far as torch."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was reached"))


def refused(path, mark):
    """One sentence, at once, in next to no memory; nothing ran and nothing was written."""
    mark.parent.mkdir(exist_ok=True)
    before, files = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set(path.parent.iterdir())
    with pytest.raises(UserError) as caught:
        checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 400 + len(str(path)), text
    assert not list(mark.parent.iterdir()) and set(path.parent.iterdir()) == files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
    return text


@pytest.mark.parametrize("name", GADGETS)
def test_a_pickle_that_would_run_something_is_refused(name, tmp_path, mark, guard_alone):
    """At the top, hidden beside real weights, and in the form of torch before 1.6."""
    module, function, *arguments = filled(list(GADGETS[name]), mark)
    gadget = call(module, function, *arguments)
    beside = whole(b"}" + said("w") + tensor(2, (2,), (1,)) + b"s" + said("x") + gadget + b"s")
    for form, content in {
        "top.pt": archive(whole(gadget)),
        "beside.pth": archive(beside, [("data/0", b"\0" * 8)]),
        "old.th": MAGIC + whole(b"M\xe9\x03") + whole(said({"little_endian": True})) + whole(gadget) + whole(b"]"),
        "plain.tar": whole(gadget),
    }.items():
        (tmp_path / form).write_bytes(content)
        refused(tmp_path / form, mark)


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_no_checkpoint_is_refused(name, tmp_path, mark, request):
    if name not in EMPTY:
        request.getfixturevalue("guard_alone")
    path = tmp_path / "model.pt"
    path.write_bytes(
        BOMBS[name].replace(b"MARK", b"%b" % str(mark).encode()) if b"MARK" in BOMBS[name] else BOMBS[name]
    )
    refused(path, mark)


def test_the_gadgets_are_alive(tmp_path):
    """Plain pickle runs them; else the tests above would prove nothing."""
    for name in ("os.system", "eval", "open", "os.mkdir", "subprocess.check_output"):
        module, function, *arguments = filled(list(GADGETS[name]), tmp_path / name)
        pickle.loads(whole(call(module, function, *arguments)))
        assert (tmp_path / name).exists(), name


def test_the_guard_looks_before_torch_does(tmp_path, mark, monkeypatch):
    """Without torch's own refusal the guard still refuses, and the other way round."""
    path = tmp_path / "model.pt"
    path.write_bytes(archive(whole(call("os", "system", f"touch {mark}"))))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was reached"))
        refused(path, mark)
    monkeypatch.setattr(checkpoints, "walk", lambda file: (file.read() and None, {}))
    assert "refused by torch.load" in refused(path, mark)


@pytest.mark.filterwarnings("ignore")  # what torch says of quantised tensors and scripts
def test_what_torch_or_others_make_beside_weights_is_refused(tmp_path, mark):
    cases = {
        "a whole model": nn.Linear(2, 2),
        "sparse": {"w": torch.eye(3).to_sparse()},
        "quantised": {"w": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
        "complex": {"w": torch.zeros(2, dtype=torch.complex64)},
        "without numbers": {"w": torch.zeros(2, device="meta")},
        "objects": {"w": np.array([{}, []], dtype=object)},
        "a number": 3,
        "a list": [torch.zeros(2)],
        "an empty dict": {},
        "no weights": {"epoch": 3, "acc": 0.9},
    }
    for name, value in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save(value, path)
        refused(path, mark)
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    assert "TorchScript" in refused(path, mark)
    assert "cannot be read" in refused(tmp_path / "nowhere.pt", mark)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_refused_or_read_as_data(tmp_path_factory, data):
    """Cut anywhere, or with any byte changed: an error in one sentence, or tensors; nothing else, ever."""
    folder = tmp_path_factory.mktemp("damaged")
    out = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(6.0).view(2, 3)}, "a": np.arange(3)}, out,
               _use_new_zipfile_serialization=data.draw(st.booleans()))  # fmt: skip
    content = bytearray(out.getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path = folder / "model.pt"
    path.write_bytes(content)
    try:
        found = checkpoint(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.weights.values())


def test_a_changed_number_is_seen_by_its_checksum(tmp_path):
    torch.save({"w": torch.arange(1000.0)}, path := tmp_path / "m.pt")
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: the checksum"):
        read(path)


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 400), st.integers(0, 400))
def test_an_archive_of_pieces_is_an_archive(contents, at, count):
    parts = [(f"top/{i}", content, zlib.crc32(content)) for i, content in enumerate(contents)]
    file = zipped(parts)
    whole = file.read()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
        assert [(name, archive.read(name)) for name in archive.namelist()] == [part[:2] for part in parts]
    file.seek(at)
    assert file.read(count) == whole[at : at + count] and file.tell() == min(at + count, max(at, len(whole)))


FORMS = {
    "plain.pth": lambda state: state,
    "ddp.pt": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "rnp.tar": lambda state: {"epoch": 3, "state_dict": state, "clean_acc": 99.0, "bad_acc": 98.0,
                              "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}},
    "ep.pth": lambda state: {"state_dict": state, "trigger": torch.rand(3, 3, 3)},
    "cifar_code.pth": lambda state: {"net": state, "acc": 95.1, "epoch": 7},
    "defense_result.pt": lambda state: {"model_name": "preactresnet18", "num_classes": 10, "model": state},
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["", "torch before 1.6"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(form, old, tmp_path):
    model = preactresnet18(10, 3, width=4)
    torch.save(FORMS[form](model.state_dict()), tmp_path / form, _use_new_zipfile_serialization=not old)
    other = preactresnet18(10, 3, width=4)
    pour(checkpoint(tmp_path / form).weights, other, form)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_safetensors_and_numpy_of_old_and_new(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "m.safetensors")
    assert checkpoint(tmp_path / "m.safetensors").weights["w"].tolist() == [0, 1, 2]
    content = {"trigger_pattern": np.ones((1, 2, 2, 3), np.uint8), "trigger_alpha": 0.2, "poison_target": np.array([3]),
               "rows": {np.int64(4): {"path": "a/4.png", "other_info": [0, np.int64(7)]}}, "at": np.float64(0.5)}  # fmt: skip
    torch.save(content, tmp_path / "t.th")
    data = (tmp_path / "t.th").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {entry.split("/", 1)[1]: file.read(entry) for entry in file.namelist()}
    one = parts["data.pkl"].replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert one != parts["data.pkl"]
    (tmp_path / "one.th").write_bytes(archive(one))
    for path in ("t.th", "one.th"):
        found = read(tmp_path / path)
        assert (found["trigger_pattern"] == 1).all()
        assert found["rows"][4]["other_info"][1] == 7 and found["poison_target"].tolist() == [3] and found["at"] == 0.5


CLP_NAMES = {"conv1": "conv1.0", "bn1": "conv1.1", "linear": "fc"} | {
    f"layer{k - 1}.": f"conv{k}_x." for k in range(2, 6)
}


def elsewhere(name):
    """Our names in EP's and CLP's words."""
    part, rest = name.split(".", 1)
    if not part.startswith("layer"):
        return f"{CLP_NAMES[part]}.{rest}"
    block, rest = rest.split(".", 1)
    for i in (1, 2, 3):
        rest = rest.replace(f"conv{i}.", f"residual_function.{3 * i - 3}.")
        rest = rest.replace(f"bn{i}.", f"residual_function.{3 * i - 2}.")
    return f"{CLP_NAMES[part + '.']}{block}.{rest}"


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_names_of_others_are_mapped_by_name(build):
    """EP's and CLP's, torchvision's; in any order of the file."""
    model, other = build(7, 3, width=2), build(7, 3, width=2)
    state = model.state_dict()
    tv = {n.replace("shortcut", "downsample").replace("linear", "fc"): t for n, t in state.items()}
    for names in ({elsewhere(n): t for n, t in state.items()}, tv):
        assert set(names) != set(state)
        for tensor in other.state_dict().values():
            tensor.zero_()
        pour(OrderedDict(sorted(names.items(), reverse=True)), other, "file")
        assert all(a.equal(b) for a, b in zip(state.values(), other.state_dict().values(), strict=True))


def test_the_groups_of_a_wideresnet_are_counted_through():
    model, other = wideresnet(7, 3, depth=16, width=1), wideresnet(7, 3, depth=16, width=1)
    names = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            name = f"block{int(block) // 2 + 1}.layer.{int(block) % 2}.{rest.replace('shortcut.0', 'convShortcut')}"
        names[name.replace("linear", "fc")] = tensor
    pour(names, other, "file")
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_does_not_fit_says_what_to_do():
    model = resnet18(10, 3, width=4)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = dict(kept)

    def without(name):
        return {k: v for k, v in state.items() if k != name}

    cases = [
        (resnet18(10, 3, width=8).state_dict(), r"conv1.weight is 8x3x3x3 .* set model.width=8"),
        (resnet18(43, 3, width=4).state_dict(), "43 classes"),
        (resnet18(10, 1, width=4).state_dict(), "1 channels"),
        (without("layer4.1.conv2.weight"), r"lacks layer4.1.conv2.weight; choose the model"),
        (state | {"extra.weight": torch.zeros(1)}, "it has extra.weight"),
        (preactresnet18(10, 3, width=4).state_dict(), "of another network than this ResNet: it lacks bn1"),
        (state | {"conv1.weight": state["conv1.weight"] * torch.nan}, "not finite"),
        (state | {"bn1.running_var": -state["bn1.running_var"]}, "running_var below 0"),
        (state | {"conv1.weight": state["conv1.weight"].to(torch.int8)}, "torch.int8"),
        ({str(i): t for i, t in enumerate(state.values())}, "it lacks"),  # never by position
    ]
    for weights, words in cases:
        with pytest.raises(UserError, match=words):
            pour(weights, model, "file", width=4)
        assert all(kept[name].equal(tensor) for name, tensor in model.state_dict().items()), "nothing was changed"
    pour({n: t.half() for n, t in state.items() if not n.endswith("num_batches_tracked")}, model, "file")
