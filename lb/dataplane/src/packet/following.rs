//! Interfaces that go away and come back: a card that is replaced, a tunnel that is made anew. And programs that somebody takes
//! away from one that stays.
//!
//! With an interface, the kernel ends the programs at it. Another one of the same name has another number and none of them.

use super::{Attached, PacketBalancer, PacketError, address, interfaces, programs};
use crate::Missing;

impl PacketBalancer {
    /// Takes note of interfaces that are gone or take nothing from XDP any more, and attaches the programs to those that have
    /// come back. Call it from time to time.
    pub fn follow_interfaces(&mut self) {
        let mut has_changed = false;
        for at in 0..self.attached.len() {
            let Attached { name, index: known, mode, is_way_of_xdp, .. } = &self.attached[at];
            let Ok(found) = interfaces::index(name) else { continue };
            if *known != found {
                self.follow(at, found);
                has_changed = true;
            } else if *is_way_of_xdp != (found != 0 && programs::is_way_of_xdp(*mode, found)) {
                self.attached[at].is_way_of_xdp ^= true;
                log(&self.attached[at]);
                has_changed = true;
            }
        }
        if has_changed && let Err(error) = self.maps.set_devices(&devices(&self.attached)) {
            tracing::warn!(%error, "Cannot send packets on to an interface that has come back");
        }
    }

    /// Has packets in tunnels taken from the nodes that are wanted. What the kernel refuses is tried again at each call.
    pub(crate) fn follow_nodes(&mut self) {
        let maps = &self.maps;
        self.nodes.carry_out(|node, is_wanted| match is_wanted {
            true => maps.add_node(&address(node)),
            false => maps.remove_node(&address(node)),
        });
    }

    /// Makes do with what has become of an interface.
    fn follow(&mut self, at: usize, found: u32) {
        let Attached { name, index, reason, is_way_of_xdp, .. } = &mut self.attached[at];
        if *index != 0 {
            programs::leave(&self.directory, &mut self.pins, std::mem::take(index));
            *is_way_of_xdp = false;
        }
        let pins = (&*self.directory, &mut self.pins);
        let attached = match found {
            0 => Err(PacketError::Gone(name.clone())),
            _ => programs::attach_one(&mut self.ebpf, pins, &self.older, name, self.mode),
        };
        match attached {
            Ok(attached) => {
                log(&attached);
                self.attached[at] = attached;
            }
            Err(error) => {
                let error = crate::balancer::error_text(&error);
                if *reason != error {
                    tracing::warn!(
                        interface = name,
                        error,
                        "Packets of an interface are not balanced any more"
                    );
                    *reason = error;
                }
            }
        }
    }
}

impl PacketBalancer {
    /// What somebody has taken away, other than whole interfaces.
    pub fn missing(&self) -> Missing {
        let packet_programs = self.attached.iter().map(|each| programs::detached(&self.pins, each)).sum();
        Missing { packet_programs, pins: self.pins.missing().len(), ..Missing::default() }
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn restore(&mut self) -> Result<(), PacketError> {
        self.pins.restore()?;
        self.hold = programs::hold(&self.directory)?;
        for at in 0..self.attached.len() {
            if programs::detached(&self.pins, &self.attached[at]) > 0 {
                let (name, pins) = (&self.attached[at].name, (&*self.directory, &mut self.pins));
                self.attached[at] = programs::attach_one(&mut self.ebpf, pins, &self.older, name, self.mode)?;
            }
        }
        Ok(())
    }
}

/// Says where packets are balanced.
pub(super) fn log(attached: &Attached) {
    let (interface, mode, reason) = (&attached.name, attached.mode.as_str(), attached.why());
    tracing::info!(interface, mode, reason, "Balancing packets in the kernel");
}

/// The interfaces that XDP may send packets to.
pub(super) fn devices(attached: &[Attached]) -> Vec<u32> {
    let by_xdp = attached.iter().filter(|each| each.is_way_of_xdp && each.is_present());
    by_xdp.map(|each| each.index).collect()
}
