//! Tunnels between network namespaces, on the real kernel.

mod far_end;
mod interfaces;
mod interoperation;
mod namespaces;
mod narrow_path;
mod survival;
