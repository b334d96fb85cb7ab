//! What the kernel knows of a socket and tells no hook: read at offsets that the user side has found.
//!
//! Where the kernel takes a pointer for one of its own types on a program's word (`bpf_rdonly_cast`, Linux 6.2), a read is
//! one instruction; elsewhere it is the call of a function, which takes ten times as long.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::programs::{SockAddrContext, SockContext};
use mesonet_ebpf_abi::{SocketFields, TcpEnd};

/// Set before the programs are loaded, so that the kernel knows the values when it compiles them.
#[unsafe(no_mangle)]
static SOCKET_FIELDS: SocketFields = SocketFields {
    kernel_type: 0,
    of_call: 0,
    cookie: 0,
    flags: 0,
    linger_time: 0,
    segments_out: 0,
    segments_in: 0,
    data_segments_in: 0,
    bytes_sent: 0,
    bytes_resent: 0,
    bytes_received: 0,
    next_written: 0,
    next_sent: 0,
    next_received: 0,
    next_read: 0,
};

const CLOSE: u32 = 7;
const ESTABLISHED: u32 = 1;

/// The kernel's structure.
#[derive(Clone, Copy)]
pub struct Socket(*const c_void);

/// Where a field is. The compiler must not know that.
macro_rules! offset {
    ($name:ident) => {
        // SAFETY: a part of a static.
        unsafe { (&raw const SOCKET_FIELDS.$name).read_volatile() }
    };
}

impl Socket {
    /// The one that a system call with an address is about.
    #[inline(always)]
    pub fn of_call(context: &SockAddrContext) -> Self {
        if offset!(kernel_type) == 0 {
            return Self(probe::<u64>(context.as_ptr(), offset!(of_call)) as *const c_void);
        }
        // SAFETY: the kernel allows a read of the whole field; a volatile one is neither joined nor split.
        cast(unsafe { (&raw const (*context.sock_addr).__bindgen_anon_1.sk).read_volatile() }.cast())
    }

    /// The one that is closed: the context itself.
    #[inline(always)]
    pub fn of_release(context: &SockContext) -> Self {
        if offset!(kernel_type) == 0 { Self(context.as_ptr()) } else { cast(context.as_ptr()) }
    }

    /// Its cookie, or 0 if nobody has asked for it: these programs ask when they give an endpoint to a socket, so that
    /// nothing is known of one without.
    #[inline(always)]
    pub fn known_cookie(self) -> u64 {
        self.read(offset!(cookie))
    }

    /// What is to be counted of a connection of TCP.
    #[inline(always)]
    pub fn end(self, state: u32) -> TcpEnd {
        // The end is an octet. If it comes just now, it had better be counted as one than taken from the others.
        let flags: u64 = self.read(offset!(flags));
        let mut end = TcpEnd {
            state,
            is_done: flags & SocketFields::DONE != 0,
            bytes_sent: self.read(offset!(bytes_sent)),
            bytes_resent: self.read(offset!(bytes_resent)),
            bytes_received: self.read(offset!(bytes_received)),
            segments_out: self.read(offset!(segments_out)),
            segments_in: self.read(offset!(segments_in)),
            ..TcpEnd::default()
        };
        if state == ESTABLISHED || end.bytes_received == 0 {
            end.next_received = self.read(offset!(next_received));
        }
        if state == CLOSE {
            end.data_segments_in = self.read(offset!(data_segments_in));
        } else {
            end.next_written = self.read(offset!(next_written));
            end.next_sent = self.read(offset!(next_sent));
        }
        if state == ESTABLISHED {
            end.next_read = self.read(offset!(next_read));
            end.is_abortive =
                flags & SocketFields::LINGERS != 0 && self.read::<u64>(offset!(linger_time)) == 0;
        }
        end
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: u32) -> T {
        if offset!(kernel_type) == 0 {
            return probe(self.0, offset);
        }
        // SAFETY: the kernel has been told what type this is, and reads zero where there is nothing.
        unsafe { self.0.cast::<u8>().wrapping_add(offset as usize).cast::<T>().read_volatile() }
    }
}

/// Tells the kernel what a socket is. Of one that is not of TCP, only what all sockets have may be read.
#[inline(always)]
fn cast(socket: *const c_void) -> Socket {
    type Cast = unsafe extern "C" fn(*const c_void, u32) -> *const c_void;
    let kernel_type = offset!(kernel_type);
    // SAFETY: the user side puts a call of the function of this type here, whose number it finds with the offsets.
    Socket(unsafe { core::mem::transmute::<usize, Cast>(SocketFields::CAST as usize)(socket, kernel_type) })
}

/// Reads what is at an offset; zero, if it cannot be read.
#[inline(always)]
fn probe<T: Copy>(base: *const c_void, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and writes as many octets as there are in any case. Numbers may have any
    // value.
    unsafe {
        let at = base.cast::<u8>().wrapping_add(offset as usize).cast();
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, at);
        value.assume_init()
    }
}
