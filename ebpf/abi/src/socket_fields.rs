//! Where the kernel keeps what no hook is told.

/// Offsets of fields in the kernel that runs, in octets. The user side finds them in the kernel's description of its own
/// types; the programs read the fields of any socket, in any context.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketFields {
    /// The number of the kernel's type of TCP sockets; 0 if the kernel does not take a pointer for one on a program's word.
    pub kernel_type: u32,
    /// The pointer to the socket in the context of hooks about addresses.
    pub of_call: u32,
    /// The socket's cookie, 0 until somebody has asked for it.
    pub cookie: u32,
    /// Flags of the socket, of which [`SocketFields::DONE`] is one.
    pub flags: u32,
    /// How long closing waits, if the flag says that it does.
    pub linger_time: u32,
    /// Segments sent.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Segments received that had octets in them, whether or not these were taken.
    pub data_segments_in: u32,
    /// Octets sent, as often as they were.
    pub bytes_sent: u32,
    /// Octets of them that were sent again.
    pub bytes_resent: u32,
    /// Octets received in order.
    pub bytes_received: u32,
    /// The number of the next octet that the client writes.
    pub next_written: u32,
    /// The number of the next octet that is sent.
    pub next_sent: u32,
    /// The number of the next octet that is received, 0 if there is no connection yet.
    pub next_received: u32,
    /// The number of the next octet that the client reads.
    pub next_read: u32,
}

impl SocketFields {
    /// What programs call as if it was a helper where they mean [`SocketFields::CAST_NAME`]. The user side puts that in.
    pub const CAST: u32 = 0x6d65_736f;

    /// The kernel's function that takes a pointer for one to a type.
    pub const CAST_NAME: &'static str = "bpf_rdonly_cast";

    /// The kernel's type of TCP sockets.
    pub const TYPE_NAME: &'static str = "tcp_sock";

    /// The names of the offsets in the kernel, in order: a structure and what it holds.
    pub const NAMES: [(&'static str, &'static str); 14] = [
        ("bpf_sock_addr_kern", "sk"),
        ("sock_common", "skc_cookie"),
        ("sock_common", "skc_flags"),
        ("sock", "sk_lingertime"),
        ("tcp_sock", "segs_out"),
        ("tcp_sock", "segs_in"),
        ("tcp_sock", "data_segs_in"),
        ("tcp_sock", "bytes_sent"),
        ("tcp_sock", "bytes_retrans"),
        ("tcp_sock", "bytes_received"),
        ("tcp_sock", "write_seq"),
        ("tcp_sock", "snd_nxt"),
        ("tcp_sock", "rcv_nxt"),
        ("tcp_sock", "copied_seq"),
    ];

    /// The bit of the flags that is set when the other side has ended (`SOCK_DONE`).
    pub const DONE: u64 = 1 << 1;

    /// The bit of the flags that makes closing wait, or reset the connection if the time is 0 (`SOCK_LINGER`).
    pub const LINGERS: u64 = 1 << 4;
}
