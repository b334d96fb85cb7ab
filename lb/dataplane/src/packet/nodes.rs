//! The nodes that packets in tunnels are taken from.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// Addresses of nodes, as they should be in the kernel and as they are there.
#[derive(Debug)]
pub(super) struct Nodes {
    wanted: BTreeSet<IpAddr>,
    in_effect: BTreeSet<IpAddr>,
    /// Those that the kernel has refused to take or to let go, and that was told of.
    refused: BTreeSet<IpAddr>,
}

impl Nodes {
    /// Those that a former process has left, which are to stay until others are wanted.
    pub(super) fn new(found: BTreeSet<IpAddr>) -> Self {
        Self { wanted: found.clone(), in_effect: found, refused: BTreeSet::new() }
    }

    /// Those that should be.
    pub(super) fn wanted(&self) -> &BTreeSet<IpAddr> {
        &self.wanted
    }

    /// Has others in the kernel from now on. Returns whether that is a change.
    pub(super) fn want(&mut self, nodes: BTreeSet<IpAddr>) -> bool {
        let is_change = nodes != self.wanted;
        self.wanted = nodes;
        is_change
    }

    /// Makes the kernel have what is wanted, as far as it lets. `write` puts an address there, or takes it away.
    pub(super) fn carry_out(&mut self, write: impl Fn(IpAddr, bool) -> io::Result<()>) {
        let different: Vec<IpAddr> = self.wanted.symmetric_difference(&self.in_effect).copied().collect();
        self.refused.retain(|node| different.binary_search(node).is_ok());
        for node in different {
            let is_wanted = self.wanted.contains(&node);
            match write(node, is_wanted) {
                Ok(()) => {
                    let _ =
                        if is_wanted { self.in_effect.insert(node) } else { self.in_effect.remove(&node) };
                    self.refused.remove(&node);
                }
                Err(error) if self.refused.insert(node) => {
                    tracing::warn!(%error, %node, is_wanted, "Cannot change which nodes packets in tunnels are taken from");
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn set<const N: usize>(hosts: [u8; N]) -> BTreeSet<IpAddr> {
        hosts.into_iter().map(|host| IpAddr::from([10, 0, 0, host])).collect()
    }

    #[test]
    fn what_the_kernel_refuses_is_tried_again() {
        let kernel = RefCell::new(set([1]));
        let write = |node: IpAddr, is_wanted: bool| {
            let mut kernel = kernel.borrow_mut();
            // It has room for two.
            if is_wanted && kernel.len() == 2 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let _ = if is_wanted { kernel.insert(node) } else { kernel.remove(&node) };
            Ok(())
        };
        let mut nodes = Nodes::new(set([1]));
        assert!(nodes.want(set([1, 2, 3])));
        nodes.carry_out(write);
        assert_eq!(*kernel.borrow(), set([1, 2]));
        assert!(!nodes.want(set([1, 2, 3])), "it is wanted already");
        nodes.carry_out(write);
        assert_eq!(*kernel.borrow(), set([1, 2]));
        // Another process has made room.
        kernel.borrow_mut().remove(&IpAddr::from([10, 0, 0, 2]));
        nodes.carry_out(write);
        assert_eq!(*kernel.borrow(), set([1, 3]));
        nodes.want(set([3]));
        nodes.carry_out(write);
        assert_eq!(*kernel.borrow(), set([3]));
    }
}
