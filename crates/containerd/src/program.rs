//! A program that can be made into an image: one static file, read piece by piece.
//!
//! The image's only layer is an archive of that file, byte for byte the same as in the released image.
//! So both share one snapshot: nothing is unpacked a second time, and the agent
//! and the gates share the program's pages in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::content::hex_of;

/// The program's name in its image.
pub(crate) const NAME: &str = "trylatest";

/// How much is read and sent at once.
const PIECE_BYTES: u64 = 256 << 10;

/// An archive consists of blocks of this size, and ends with two empty ones.
const BLOCK: usize = 512;

/// ELF's program header that names a dynamic linker.
const PT_INTERP: u32 = 3;

/// A static program and the digest of the layer that holds it.
#[derive(Clone, Debug)]
pub struct Program {
    file: Arc<File>,
    file_bytes: u64,
    layer: String,
}

/// Why a program cannot be made into an image.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Its file could not be read.
    #[error("reading the program")]
    Read(#[source] io::Error),
    /// It would not run in an image without other files.
    #[error("the program is not a static ELF file")]
    NotStatic,
}

impl Program {
    /// Reads the file once from beginning to end, to know its layer's digest. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or the program needs other files.
    pub fn open(path: &Path) -> Result<Self, ProgramError> {
        let file = File::open(path).map_err(ProgramError::Read)?;
        let file_bytes = file.metadata().map_err(ProgramError::Read)?.len();
        if !is_static(&file).map_err(ProgramError::Read)? {
            return Err(ProgramError::NotStatic);
        }
        let mut program = Self {
            file: Arc::new(file),
            file_bytes,
            layer: String::new(),
        };
        let mut hash = Sha256::new();
        for piece in program.pieces() {
            hash.update(piece.map_err(ProgramError::Read)?);
        }
        program.layer = format!("sha256:{}", hex_of(&hash.finalize()));
        Ok(program)
    }

    /// The digest of its layer.
    pub(crate) fn layer(&self) -> &str {
        &self.layer
    }

    /// The size of its layer.
    pub(crate) fn layer_bytes(&self) -> u64 {
        let block = BLOCK as u64;
        block + self.file_bytes.next_multiple_of(block) + 2 * block
    }

    /// The layer, piece by piece. Reading a piece blocks; the file is that of a running program.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = io::Result<Vec<u8>>> + Send + use<> {
        let (file, file_bytes) = (Arc::clone(&self.file), self.file_bytes);
        let reads = (0..file_bytes.div_ceil(PIECE_BYTES)).map(move |index| {
            let at = index * PIECE_BYTES;
            let length = PIECE_BYTES.min(file_bytes - at);
            let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
            file.read_exact_at(&mut piece, at)?;
            Ok(piece)
        });
        let total = usize::try_from(self.layer_bytes() - self.file_bytes).unwrap_or(0);
        let end = vec![0; total - BLOCK];
        std::iter::once(Ok(header(file_bytes).to_vec()))
            .chain(reads)
            .chain(std::iter::once(Ok(end)))
    }
}

/// The archive's header of the program, as POSIX.1-1988 has it (ustar): it belongs to root, all may
/// run it, and it has no time.
fn header(size: u64) -> [u8; BLOCK] {
    const SUM: std::ops::Range<usize> = 148..156;
    let mut header = [0; BLOCK];
    header[..NAME.len()].copy_from_slice(NAME.as_bytes());
    for (field, value) in [
        (100..108, 0o755),
        (108..116, 0),
        (116..124, 0),
        (124..136, size),
        (136..148, 0),
    ] {
        octal(&mut header[field], value);
    }
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    // The sum counts its own place as spaces.
    header[SUM].fill(b' ');
    let sum = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[SUM], sum);
    header
}

/// Octal digits up to a zero byte.
fn octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}\0", width = field.len() - 1);
    field.copy_from_slice(digits.as_bytes());
}

/// Whether the file is an ELF program that names no dynamic linker.
fn is_static(file: &File) -> io::Result<bool> {
    let mut head = [0; 64];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    // 64-bit only: Kubernetes no longer supports 32-bit nodes.
    if !head.starts_with(b"\x7fELF\x02") {
        return Ok(false);
    }
    let big_endian = head[5] == 2;
    let number = |bytes: &[u8]| {
        let digit = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if big_endian {
            bytes.iter().fold(0, digit)
        } else {
            bytes.iter().rev().fold(0, digit)
        }
    };
    let (first, length, count) = (
        number(&head[32..40]),
        number(&head[54..56]),
        number(&head[56..58]),
    );
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, first.saturating_add(index * length))?;
        if number(&kind) == u64::from(PT_INTERP) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A little-endian ELF file with one program header of this kind, and some bytes.
    fn elf(kind: u32, bytes: usize) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file.extend(kind.to_le_bytes());
        file.extend([0; 52]);
        file.extend((0..bytes).map(|at| u8::try_from(at % 251).unwrap()));
        file
    }

    fn written(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn the_layer_is_the_released_images() {
        for bytes in [0, 392, 393, 700_000] {
            let content = elf(1, bytes);
            let file = written(&content);
            let program = Program::open(file.path()).unwrap();
            let layer: Vec<u8> = program.pieces().flat_map(Result::unwrap).collect();
            // As e2e/bootstrap/src/oci.rs writes it.
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(content.len() as u64);
            archive
                .append_data(&mut header, NAME, &content[..])
                .unwrap();
            let expected = archive.into_inner().unwrap();
            assert!(layer == expected, "{bytes}");
            assert_eq!(program.layer_bytes(), expected.len() as u64);
            assert_eq!(program.layer(), crate::content::sha256(&expected));
        }
    }

    #[test]
    fn only_a_static_program_can_be_an_image() {
        for bad in [elf(PT_INTERP, 10), b"#!/bin/sh\n".to_vec(), vec![b'x'; 100]] {
            let file = written(&bad);
            let opened = Program::open(file.path());
            assert!(matches!(opened, Err(ProgramError::NotStatic)), "{bad:?}");
        }
        let missing = Program::open(Path::new("/nonexistent/program"));
        assert!(matches!(missing, Err(ProgramError::Read(_))));
    }
}
