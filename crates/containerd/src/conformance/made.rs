//! Images that are made on the node.

use std::fs;

use trylatest_core::image::ImageName;

use super::{Harness, Verdict, ensure, is_usable, local, pull, said, until};
use crate::program::Program;
use crate::runtime::{ImageRuntime, Local, Over, Pointed};

/// Several pieces, so that they have to come in order.
const PROGRAM_BYTES: usize = 1 << 20;

/// A unique file that passes for a static program. Nothing runs it.
fn program(name: &str) -> Result<Program, String> {
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file.extend(name.bytes().cycle().take(PROGRAM_BYTES));
    let path = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
    fs::write(&path, file).map_err(said)?;
    let program = Program::open(&path).map_err(said);
    // It stays open.
    fs::remove_file(&path).map_err(said)?;
    program
}

/// Makes the image; whether there was something to make.
async fn make<H: Harness>(h: &H, program: &Program, alias: &str) -> Result<bool, String> {
    h.runtime().make(program, alias).await.map_err(said)
}

async fn point<H: Harness>(
    h: &H,
    image: &ImageName,
    alias: &str,
    over: Over<'_>,
) -> Result<Pointed, String> {
    h.runtime().point(image, alias, over).await.map_err(said)
}

/// The digest under the name, once it is usable: CRI hears of names by events.
async fn usable<H: Harness>(h: &H, image: &ImageName) -> Result<String, String> {
    until("a made image is usable", || async {
        Ok(matches!(local(h, image).await?, Local::Usable(_)))
    })
    .await?;
    match local(h, image).await? {
        Local::Usable(found) => Ok(found.digest),
        other => Err(format!("{image} should be usable: {other:?}")),
    }
}

pub(super) async fn a_program_becomes_an_image<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-made";
    let program = program("made")?;
    ensure(make(h, &program, alias).await?, "it is made")?;
    ensure(!make(h, &program, alias).await?, "it is made once")?;
    let tag = h.image("made", "latest");
    let digest = format!("{}@sha256:{:064x}", tag.repository(), 1);
    for name in [tag.clone(), digest.parse().map_err(said)?] {
        let pointed = point(h, &name, alias, Over::Program(&program)).await?;
        ensure(pointed == Pointed::Now, &format!("{name}: {pointed:?}"))?;
        let pointed = point(h, &name, alias, Over::Anything).await?;
        ensure(pointed == Pointed::Already, &format!("{name}: {pointed:?}"))?;
        usable(h, &name).await?;
    }
    let mut names = h.runtime().pointing(alias).await.map_err(said)?;
    names.sort();
    let mut expected = vec![tag, digest.parse().map_err(said)?];
    expected.sort();
    ensure(names == expected, &format!("names: {names:?}"))
}

pub(super) async fn no_two_made_images_are_alike<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-again";
    let program = program("again")?;
    let image = h.image("again", "latest");
    make(h, &program, alias).await?;
    point(h, &image, alias, Over::Anything).await?;
    let first = usable(h, &image).await?;
    h.runtime().forget(alias).await.map_err(said)?;
    ensure(make(h, &program, alias).await?, "it is made again")?;
    let pointed = point(h, &image, alias, Over::Program(&program)).await?;
    ensure(pointed == Pointed::Now, &format!("{pointed:?}"))?;
    until("the name points to the second", || async {
        Ok(usable(h, &image).await? != first)
    })
    .await
}

pub(super) async fn another_program_is_another_image<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-newer";
    let (older, newer) = (program("older")?, program("newer")?);
    let image = h.image("newer", "latest");
    make(h, &older, alias).await?;
    point(h, &image, alias, Over::Anything).await?;
    let first = usable(h, &image).await?;
    ensure(make(h, &newer, alias).await?, "the newer is made")?;
    let stays = point(h, &image, alias, Over::Program(&newer)).await?;
    ensure(stays == Pointed::Elsewhere, &format!("{stays:?}"))?;
    is_usable(h, &image, &first).await
}

pub(super) async fn a_cleaner_removes_it_and_it_is_made_again<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-cleaned";
    let program = program("cleaned")?;
    let image = h.image("cleaned", "latest");
    make(h, &program, alias).await?;
    point(h, &image, alias, Over::Anything).await?;
    usable(h, &image).await?;
    h.remove_by_id(&image).await;
    until("the image is gone", || async {
        Ok(local(h, &image).await? == Local::Absent)
    })
    .await?;
    ensure(make(h, &program, alias).await?, "it is made again")?;
    point(h, &image, alias, Over::Program(&program)).await?;
    usable(h, &image).await.map(drop)
}

pub(super) async fn lost_content_is_written_again<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-hollow";
    let program = program("hollowed")?;
    let image = h.image("hollowed", "latest");
    make(h, &program, alias).await?;
    point(h, &image, alias, Over::Anything).await?;
    usable(h, &image).await?;
    h.hollow(&image).await;
    until("it cannot be used", || async {
        Ok(matches!(local(h, &image).await?, Local::Unusable { .. }))
    })
    .await?;
    ensure(make(h, &program, alias).await?, "it is made again")?;
    point(h, &image, alias, Over::Program(&program)).await?;
    usable(h, &image).await.map(drop)
}

pub(super) async fn a_name_of_something_else_stays<H: Harness>(h: &H) -> Verdict {
    let alias = "TryLatest,keep,conformance-else";
    let program = program("else")?;
    let image = h.image("else", "latest");
    let digest = h.push(&image, 1).await;
    pull(h, &image).await?;
    make(h, &program, alias).await?;
    let stays = point(h, &image, alias, Over::Program(&program)).await?;
    ensure(stays == Pointed::Elsewhere, &format!("{stays:?}"))?;
    is_usable(h, &image, &digest).await?;
    let pointed = point(h, &image, alias, Over::Anything).await?;
    ensure(pointed == Pointed::Now, &format!("{pointed:?}"))?;
    until("it points to the program", || async {
        Ok(usable(h, &image).await? != digest)
    })
    .await
}
