//! Where the running kernel keeps what it knows of sockets, from its own description of its types (BTF, which
//! Documentation/bpf/btf.rst of Linux describes).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use mesonet_ebpf_abi::{SocketFields, Words as _};
use thiserror::Error;

/// Where the kernel describes its types.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// Octets of the parts that the description is made of.
const HEADER: usize = 24;
const TYPE: usize = 12;
const MEMBER: usize = 12;

/// Kinds of types.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;

/// How deep members without a name are nested in each other.
const DEPTH_MAX: usize = 8;

/// The programs cannot be told where the kernel keeps what they count.
#[derive(Debug, Error)]
pub enum KernelTypesError {
    /// There is no description.
    #[error("cannot read {PATH}, where the kernel describes its types (it needs CONFIG_DEBUG_INFO_BTF)")]
    Read(#[source] io::Error),
    /// It has another form.
    #[error("cannot understand {PATH}, where the kernel describes its types")]
    Form,
    /// A field is not there.
    #[error("this kernel has no field {field} of {structure}, which connections are counted by")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// What the programs are told of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KernelTypes {
    /// The offsets of the fields that they read.
    pub(super) fields: SocketFields,
    /// The number of the function [`SocketFields::CAST_NAME`], if the kernel has it.
    pub(super) cast: Option<u32>,
}

impl KernelTypes {
    /// Those of the kernel that runs.
    pub(super) fn of_kernel() -> Result<Self, KernelTypesError> {
        Self::find(&fs::read(PATH).map_err(KernelTypesError::Read)?)
    }

    /// The same for a kernel that does not let the programs call the function.
    pub(super) fn without_cast(self) -> Self {
        Self { fields: SocketFields { kernel_type: 0, ..self.fields }, cast: None }
    }

    fn find(description: &[u8]) -> Result<Self, KernelTypesError> {
        let types = Types::read(description).ok_or(KernelTypesError::Form)?;
        let mut octets = [0; SocketFields::SIZE];
        for (at, (structure, field)) in SocketFields::NAMES.into_iter().enumerate() {
            let offset =
                types.offset(structure, field).ok_or(KernelTypesError::NoField { structure, field })?;
            // Behind the type.
            offset.write(&mut octets[(1 + at) * u32::SIZE..]);
        }
        let kernel_type = types.structures.get(SocketFields::TYPE_NAME.as_bytes());
        let kernel_type = kernel_type.and_then(|number| u32::try_from(*number).ok()).unwrap_or_default();
        let found =
            Self { fields: SocketFields { kernel_type, ..SocketFields::read(&octets) }, cast: types.cast };
        Ok(if found.cast.is_some() { found } else { found.without_cast() })
    }
}

/// The types of a description.
struct Types<'a> {
    strings: &'a [u8],
    /// Each with its members; the first is number 1.
    types: Vec<(Type, &'a [u8])>,
    /// Structures, by their names.
    structures: BTreeMap<&'a [u8], usize>,
    /// The function that makes a pointer one to a type.
    cast: Option<u32>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    /// How many parts follow.
    fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Octets that follow. Nothing if the kind is not known.
    fn rest(self) -> Option<usize> {
        Some(match self.kind() {
            // An integer, a variable, a tag of a declaration: a word more.
            1 | 14 | 17 => 4,
            // An array.
            3 => 12,
            STRUCT | UNION => self.count() * MEMBER,
            // An enumeration, and the parameters of a function.
            6 | 13 => self.count() * 8,
            // A section of data, and a wide enumeration.
            15 | 19 => self.count() * 12,
            // A pointer, another name, a qualifier, a function, a floating-point number, a tag of a type.
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        })
    }
}

impl<'a> Types<'a> {
    fn read(description: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic = description.first_chunk::<2>()?;
        if u16::from_ne_bytes(*magic) != MAGIC || description.len() < HEADER {
            return None;
        }
        let parts = description.get(word(description, 4)? as usize..)?;
        let part = |at: usize| {
            let (offset, length) = (word(description, at)? as usize, word(description, at + 4)? as usize);
            parts.get(offset..)?.get(..length)
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let mut all = Self { strings, types: Vec::new(), structures: BTreeMap::new(), cast: None };
        while !rest.is_empty() {
            let each = Type { name: word(rest, 0)?, info: word(rest, 4)? };
            let members = rest.get(TYPE..)?.get(..each.rest()?)?;
            rest = &rest[TYPE + members.len()..];
            all.types.push((each, members));
            if each.kind() == STRUCT && each.name != 0 {
                all.structures.insert(all.string(each.name)?, all.types.len());
            }
            if each.kind() == FUNCTION && all.string(each.name)? == SocketFields::CAST_NAME.as_bytes() {
                all.cast = u32::try_from(all.types.len()).ok();
            }
        }
        Some(all)
    }

    /// The offset of a field in octets, be it in a member without a name.
    fn offset(&self, structure: &str, field: &str) -> Option<u32> {
        self.offset_in(*self.structures.get(structure.as_bytes())?, field.as_bytes(), DEPTH_MAX)
    }

    fn offset_in(&self, number: usize, field: &[u8], depth: usize) -> Option<u32> {
        let (each, members) = self.types.get(number.checked_sub(1)?)?;
        if depth == 0 || !matches!(each.kind(), STRUCT | UNION) {
            return None;
        }
        members.chunks_exact(MEMBER).find_map(|member| {
            let name = word(member, 0)?;
            // In bits. The upper octet may be the size of a part of a word, which no field here is.
            let offset = (word(member, 8)? & 0x00ff_ffff) / 8;
            if name == 0 {
                return Some(offset + self.offset_in(word(member, 4)? as usize, field, depth - 1)?);
            }
            (self.string(name)? == field).then_some(offset)
        })
    }

    fn string(&self, at: u32) -> Option<&'a [u8]> {
        self.strings.get(at as usize..)?.split(|octet| *octet == 0).next()
    }
}

fn word(from: &[u8], at: usize) -> Option<u32> {
    from.get(at..)?.first_chunk::<4>().map(|octets| u32::from_ne_bytes(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of types, each with the words that follow its name.
    fn description(types: &[(&str, &[u32])], members: &[&str]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut name = |name: &str| {
            if name.is_empty() {
                return 0;
            }
            let at = strings.len() as u32;
            strings.extend(name.bytes().chain([0]));
            at
        };
        let names: Vec<u32> = members.iter().map(|member| name(member)).collect();
        let mut words = Vec::new();
        for (each, rest) in types {
            words.push(name(each));
            words.extend_from_slice(&rest[..2]);
            // The first word of each member says which name it has.
            for member in rest[2..].chunks(3) {
                words.extend([names[member[0] as usize], member[1], member[2]]);
            }
        }
        let length = words.len() as u32 * 4;
        let mut all = 0xeb9f_u16.to_ne_bytes().to_vec();
        all.extend([1, 0]);
        let header = [HEADER as u32, 0, length, length, strings.len() as u32];
        all.extend(header.iter().chain(&words).flat_map(|word| word.to_ne_bytes()));
        all.extend(strings);
        all
    }

    #[test]
    fn fields_are_found_by_their_names() {
        let (structure, union) = (STRUCT << 24, UNION << 24);
        // A structure of a word, and of a union without a name of two.
        let types: [(&str, &[u32]); 3] = [
            ("", &[2 << 24, 0]),
            ("", &[union | 2, 8, 1, 1, 0, 2, 1, 16]),
            ("pair", &[structure | 2, 12, 0, 1, 0, 3, 2, 32]),
        ];
        let description = description(&types, &["first", "second", "third", ""]);
        let types = Types::read(&description).expect("a description");
        let offsets = ["first", "second", "third", "fourth"].map(|field| types.offset("pair", field));
        assert_eq!(offsets, [Some(0), Some(4), Some(6), None]);
        assert_eq!(types.offset("other", "first"), None);
        // Wherever it is cut, that is noticed.
        for length in 0..description.len() {
            let cut = Types::read(&description[..length]).map(|types| types.offset("pair", "third"));
            assert!(!matches!(cut, Some(Some(_))), "{length}");
        }
        assert!(matches!(
            KernelTypes::find(&description),
            Err(KernelTypesError::NoField { field: "sk", .. })
        ));
    }

    #[test]
    fn this_kernel_has_all_fields() {
        let Ok(KernelTypes { fields, cast }) = KernelTypes::of_kernel() else {
            // A kernel without a description runs no programs.
            assert!(fs::metadata(PATH).is_err());
            return;
        };
        assert_eq!(fields.kernel_type != 0, cast.is_some());
        assert!(fields.cookie < fields.linger_time && fields.linger_time < fields.segments_out);
        assert_ne!(fields.bytes_sent, fields.bytes_resent);
    }
}
