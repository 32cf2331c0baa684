import llvmlite.binding
import pytest
from numba.core import config

from deeplearning_tutorial.nnet.dispatch.numba.llvm import emitter


@pytest.mark.parametrize(
    "triple, features, width, many",
    [
        ("x86_64-unknown-linux-gnu", "", 16, False),
        ("x86_64-unknown-linux-gnu", "+sse2,-avx,-avx512f", 16, False),
        ("x86_64-pc-windows-msvc", "+avx,+avx2,-avx512f", 32, False),
        ("x86_64-apple-darwin", "+avx,+avx2,+avx512f", 64, True),
        ("aarch64-unknown-linux-gnu", "+neon,+sve", 16, True),
        ("aarch64-unknown-linux-gnu", "-aes,-sha2", 16, True),
        ("arm64-apple-darwin", "", 16, True),
    ],
)
def test_vectors_are_as_wide_as_the_registers_that_numba_compiles_for(
    monkeypatch, triple, features, width, many
):
    monkeypatch.setattr(llvmlite.binding, "get_process_triple", lambda: triple)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    found = emitter.target_features()
    assert (emitter.register_bytes(found), emitter.has_many_registers(found)) == (width, many)


def test_without_avx_in_numba_no_vector_is_wider_than_sse(monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    monkeypatch.setattr(config, "ENABLE_AVX", False)
    assert emitter.register_bytes(emitter.target_features()) == 16
