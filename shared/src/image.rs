//! Pictures in a message, as the Messages API takes them: base64, of one of four kinds, and really of it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// The largest picture, in bytes.
pub const MAX_BYTES: usize = 5 * 1024 * 1024;

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// In the message itself.
    Base64 {
        /// What kind it is.
        media_type: MediaType,
        /// The picture.
        data: String,
    },
}

/// The kinds of pictures a model can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the words say it all")]
pub enum MediaType {
    #[serde(rename = "image/png")]
    Png,
    #[serde(rename = "image/jpeg")]
    Jpeg,
    #[serde(rename = "image/gif")]
    Gif,
    #[serde(rename = "image/webp")]
    Webp,
}

impl MediaType {
    /// Whether `bytes` begin as a picture of this kind does.
    fn fits(self, bytes: &[u8]) -> bool {
        match self {
            Self::Png => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
            Self::Jpeg => bytes.starts_with(b"\xff\xd8\xff"),
            Self::Gif => bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a"),
            Self::Webp => bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"),
        }
    }
}

/// Why something is no picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImage {
    /// It is not base64.
    #[error("must be base64 (RFC 4648, section 4)")]
    NotBase64,
    /// It is too large.
    #[error("must be at most {MAX_BYTES} bytes")]
    TooLarge,
    /// It does not begin as its kind does.
    #[error("is not a picture of that media type")]
    OtherKind,
}

impl ImageSource {
    /// Whether it is what it says.
    pub fn check(&self) -> Result<(), InvalidImage> {
        let Self::Base64 { media_type, data } = self;
        if data.len() / 4 * 3 > MAX_BYTES + 2 {
            return Err(InvalidImage::TooLarge);
        }
        let bytes = BASE64_STANDARD.decode(data).map_err(|_| InvalidImage::NotBase64)?;
        match bytes.len() {
            0..=MAX_BYTES if media_type.fits(&bytes) => Ok(()),
            0..=MAX_BYTES => Err(InvalidImage::OtherKind),
            _ => Err(InvalidImage::TooLarge),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(media_type: MediaType, bytes: &[u8]) -> ImageSource {
        ImageSource::Base64 { media_type, data: BASE64_STANDARD.encode(bytes) }
    }

    #[test]
    fn a_picture_is_of_the_kind_it_says() {
        let png = b"\x89PNG\r\n\x1a\n....";

        assert_eq!(image(MediaType::Png, png).check(), Ok(()));
        assert_eq!(image(MediaType::Webp, b"RIFF....WEBPVP8 ").check(), Ok(()));
        assert_eq!(image(MediaType::Jpeg, png).check(), Err(InvalidImage::OtherKind));
        assert_eq!(image(MediaType::Gif, b"").check(), Err(InvalidImage::OtherKind));
    }

    #[test]
    fn what_is_not_base64_or_too_large_is_refused() {
        let source = |data: String| ImageSource::Base64 { media_type: MediaType::Gif, data };

        for wrong in ["R0lGODlh=", "R0lG ODlh", "R0lGODl", "-_==", "data:image/gif;base64,R0lGODlh"] {
            assert_eq!(source(wrong.into()).check(), Err(InvalidImage::NotBase64), "{wrong}");
        }
        assert_eq!(source("A".repeat(MAX_BYTES * 2)).check(), Err(InvalidImage::TooLarge));
        let mut large = b"GIF89a".to_vec();
        large.resize(MAX_BYTES + 1, 0);
        assert_eq!(image(MediaType::Gif, &large).check(), Err(InvalidImage::TooLarge));
    }
}
