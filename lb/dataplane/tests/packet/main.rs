//! Packet balancing: the loaded programs as functions, and traffic between network namespaces.

#![forbid(unsafe_code)]

mod site;
mod tables;
mod traffic;
