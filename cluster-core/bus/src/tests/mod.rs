//! Master and nodes over real QUIC on loopback.

mod agents;
mod hostile;
mod joining;
mod site;
mod standing;
mod views;
