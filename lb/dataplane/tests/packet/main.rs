//! Packet balancing: the loaded programs as functions, and traffic between network namespaces.

#![deny(unsafe_code)]

mod aborted;
mod choice;
mod counts;
mod direct;
mod forgotten;
mod interfaces;
mod lengths;
mod native;
mod packets;
mod site;
mod tables;
mod together;
mod traffic;
mod tunnel;
mod upgrade;
mod ways;
