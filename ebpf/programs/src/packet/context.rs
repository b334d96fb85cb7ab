//! Words of a program's context.

/// Reads a word of a context, in one instruction with the field's offset: the verifier takes no other.
macro_rules! context_word {
    ($context:expr, $kind:ty, $field:ident) => {{
        let value: u64;
        // SAFETY: the context is this program's, and the kernel allows reads of whole words.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) $context,
                offset = const core::mem::offset_of!($kind, $field),
                options(nostack),
            );
        }
        value
    }};
}

pub(crate) use context_word;
