//! The choice of a slot by its weight, in constant time.

/// A slot's part in the choice, after Vose's alias method (IEEE Transactions on Software Engineering 17(9), 1991): all
/// slots are drawn equally often; one that is drawn keeps the connection with a probability of `own` in 2³², or else
/// gives it to the slot `alias`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many of 2³² drawings it keeps. One less than meant at the top, where it is its own alias.
    pub own: u32,
    /// The slot that gets the others.
    pub alias: u32,
}

/// Draws a slot. `first` and `second` are random over all of `u32`; `share_of` looks at a slot below `slots` and says
/// `None` if it is gone.
#[inline(always)]
pub fn choose_slot(
    slots: u32,
    first: u32,
    second: u32,
    share_of: impl FnOnce(u32) -> Option<Share>,
) -> Option<u32> {
    // The upper half of the product maps the random number to 0..slots without a division.
    let drawn = ((first as u64 * slots as u64) >> 32) as u32;
    let share = share_of(drawn)?;
    if second < share.own { Some(drawn) } else { Some(share.alias) }
}
