//! An array of an eBPF program in this process's memory, since the kernel copies many entries slowly.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, MapError};
use mesonet_ebpf_abi::Words;

/// An array of values that are made of words of eight octets. The map must have the flag `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(crate) struct MappedArray<V> {
    words: NonNull<AtomicU64>,
    count: usize,
    types: PhantomData<fn() -> V>,
}

// SAFETY: the memory is not bound to a thread, and is read by atomic operations only.
unsafe impl<V> Send for MappedArray<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for MappedArray<V> {}

impl<V: Words> MappedArray<V> {
    /// A map of other values than this version's is refused.
    pub(crate) fn new(data: &MapData) -> Result<Self, MapError> {
        let info = data.info()?;
        let size = info.value_size() as usize;
        if size != V::SIZE || !size.is_multiple_of(size_of::<u64>()) {
            return Err(MapError::InvalidValueSize { size, expected: V::SIZE });
        }
        let length = info.max_entries() as usize * size;
        // SAFETY: the kernel chooses a free place for it.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        let words = NonNull::new(address).filter(|_| address != libc::MAP_FAILED);
        let Some(words) = words else { return Err(MapError::IoError(io::Error::last_os_error())) };
        Ok(Self { words: words.cast(), count: length / size_of::<u64>(), types: PhantomData })
    }

    /// Those values whose first word is not zero. Programs may change them meanwhile, word after word.
    pub(crate) fn used(&self) -> Vec<V> {
        // SAFETY: the memory is there for as long as this is, and at the start of a page.
        let words = unsafe { slice::from_raw_parts(self.words.as_ptr(), self.count) };
        let mut octets = vec![0; V::SIZE];
        let mut used = Vec::new();
        for value in words.chunks_exact(V::SIZE / size_of::<u64>()) {
            if value.first().is_some_and(|first| first.load(Ordering::Relaxed) != 0) {
                for (word, octets) in value.iter().zip(octets.chunks_exact_mut(size_of::<u64>())) {
                    octets.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
                }
                used.push(V::read(&octets));
            }
        }
        used
    }
}

impl<V> Drop for MappedArray<V> {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}
