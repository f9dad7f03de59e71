//! Random texts for secrets, from the operating system's generator.

/// Letters and digits, each as likely as every other: bytes past the last whole alphabet are thrown away.
pub fn push_random(text: &mut String, count: usize) -> Result<(), getrandom::Error> {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let end = text.len() + count;
    let mut bytes = [0; 64];
    while text.len() < end {
        getrandom::fill(&mut bytes)?;
        let fair = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
        text.extend(fair.take(end - text.len()));
    }
    Ok(())
}
