"""The version of a module: it changes with its code, and with that of all it imports from ``nnet``.

Compiled code is cached under the version of the module it was compiled from. Neither PyTensor's cache nor
Numba's notices that a function which another one calls was edited. Comments, docstrings and the lines on
which things stand change nothing.
"""

import dis
import hashlib
from functools import cache
from pathlib import Path
from types import CodeType

NNET = Path(__file__).parents[2]
_PACKAGE = "deeplearning_tutorial.nnet"
# What a class's code notes of its source since Python 3.13: its line, and attributes in any order.
_NOTES = frozenset({"__firstlineno__", "__static_attributes__"})
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]


def _describe(constant):
    """Return what a constant adds to a digest; a set's text would depend on the process."""
    if isinstance(constant, CodeType):
        return "\n".join(_describe_code(constant))
    if isinstance(constant, frozenset):
        return f"frozenset{sorted(map(_describe, constant))}"
    if isinstance(constant, tuple):
        return f"tuple{[_describe(element) for element in constant]}"
    return f"{type(constant).__name__} {constant!r}"


def _describe_code(code):
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    yield repr((code.co_name, code.co_flags, counts))
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    if _NOTES.isdisjoint(code.co_names):
        yield code.co_code.hex() + code.co_exceptiontable.hex()
        yield from map(_describe, code.co_consts)
        return
    instructions = list(dis.get_instructions(code))
    for instruction, after in zip(instructions, [*instructions[1:], None], strict=True):
        if after is None or after.argval not in _NOTES:
            yield f"{instruction.opname} {_describe(instruction.argval)}"


def _imports(code):
    """List each module that code imports, and the names taken from it; within functions, too."""
    # Most code imports nothing, and need not be taken apart.
    instructions = list(dis.get_instructions(code)) if _IMPORT_NAME in code.co_code[::2] else []
    for before, instruction in zip(instructions, instructions[1:], strict=False):
        if instruction.opname == "IMPORT_NAME":
            yield instruction.argval, before.argval or ()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant)


class Sources:
    """The modules in a folder, which is the package ``deeplearning_tutorial.nnet`` or a copy of it."""

    def __init__(self, folder=NNET):
        self._folder = folder
        self._read = cache(self._read_file)
        self.version_of = cache(self._version_of)

    def _file_of(self, name):
        if name != _PACKAGE and not name.startswith(_PACKAGE + "."):
            return None
        path = self._folder.joinpath(*name.split(".")[2:])
        files = path.with_suffix(".py"), path / "__init__.py"
        return next((file for file in files if file.is_file()), None)

    def _read_file(self, file):
        """Return a digest of a file's code, and the names of the package's modules that it imports."""
        code = compile(file.read_bytes(), file.name, "exec", optimize=2, dont_inherit=True)
        digest = hashlib.sha256("\n".join(_describe_code(code)).encode()).hexdigest()
        return digest, {name for found in _imports(code) for name in self._modules_in(*found)}

    def _modules_in(self, module, names):
        """List the package's modules in an import; a package is none where only its modules are taken."""
        modules = [f"{module}.{name}" for name in names if self._file_of(f"{module}.{name}")]
        if self._file_of(module) and (len(modules) < len(names) or not names):
            modules.append(module)
        return modules

    def modules_of(self, name):
        """List all modules on which a module's code may depend, itself included."""
        found, waiting = set(), [name]
        while waiting:
            module = waiting.pop()
            if module not in found:
                found.add(module)
                waiting += self._read(self._file_of(module))[1]
        return sorted(found)

    def _version_of(self, name):
        digest = hashlib.sha256()
        for module in self.modules_of(name):
            digest.update(f"{module} {self._read(self._file_of(module))[0]}\n".encode())
        return int.from_bytes(digest.digest()[:6], "big")


version_of = Sources().version_of
