"""Inner loops as LLVM vector code, in intrinsics that take flat arrays and offsets and check no bounds."""
