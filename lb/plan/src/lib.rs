//! View to services and endpoints, and the operations that make a data plane match.
