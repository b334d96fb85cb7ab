//! What the server does beyond its zone, on real sockets and against upstream servers that misbehave.

mod client;
mod encrypted;
mod forwarding;
mod policy;
mod upstream;
