//! The process's allocator: mimalloc (docs/decisions/0006-allocator.md).
//!
//! The `mimalloc` crate hands every request to mimalloc's aligned calls. Those look for a block of a power of two, or ask
//! for more than is wanted and align inside it: sizes like 48 or 80 bytes leave the short path. Nearly all requests of a
//! Rust program want no more than 16 bytes of alignment, which every block of at least that size has.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// mimalloc by its plain calls wherever they align enough.
pub struct Mimalloc;

/// What every block of at least this size is aligned to (`MI_MAX_ALIGN_SIZE`); smaller blocks, to their size.
const NATURAL: usize = 16;

const fn is_natural(size: usize, align: usize) -> bool {
    align <= NATURAL && align <= size
}

// SAFETY: mimalloc's calls keep the contract of `GlobalAlloc`; blocks are aligned as `NATURAL` says or as asked, and
// `mi_free` and both kinds of `mi_realloc` take blocks of both kinds of call.
unsafe impl GlobalAlloc for Mimalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: any size may be asked for; `align` is a power of two.
        unsafe {
            if is_natural(size, align) { mi::mi_malloc(size) } else { mi::mi_malloc_aligned(size, align) }
                .cast()
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as in `alloc`.
        unsafe {
            if is_natural(size, align) { mi::mi_zalloc(size) } else { mi::mi_zalloc_aligned(size, align) }
                .cast()
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the caller's block is one of this allocator's.
        unsafe { mi::mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let align = layout.align();
        // SAFETY: the caller's block is one of this allocator's; the new one is aligned as in `alloc`.
        unsafe {
            if is_natural(size, align) {
                mi::mi_realloc(block.cast(), size)
            } else {
                mi::mi_realloc_aligned(block.cast(), size, align)
            }
            .cast()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn blocks_are_aligned_and_keep_what_they_hold() {
        for align in (0..=12).map(|bits| 1 << bits) {
            for size in [1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 48, 80, 112, 1000, 1024, 1100, 5000, 70_000] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layouts have a size, and each block is used within it and freed once.
                unsafe {
                    let blocks: Vec<*mut u8> = (0..5).map(|_| Mimalloc.alloc(layout)).collect();
                    for (at, block) in blocks.iter().enumerate() {
                        assert!(!block.is_null() && block.addr() % align == 0, "{size} bytes, {align}");
                        block.write_bytes(at as u8, size);
                    }
                    for (at, block) in blocks.into_iter().enumerate() {
                        let larger = Mimalloc.realloc(block, layout, 3 * size);
                        assert!(larger.addr() % align == 0, "{size} bytes, {align}, enlarged");
                        assert!((0..size).all(|byte| larger.add(byte).read() == at as u8));
                        Mimalloc.dealloc(larger, Layout::from_size_align(3 * size, align).unwrap());
                    }
                    let zeroes = Mimalloc.alloc_zeroed(layout);
                    assert!((0..size).all(|byte| zeroes.add(byte).read() == 0));
                    Mimalloc.dealloc(zeroes, layout);
                }
            }
        }
    }
}
