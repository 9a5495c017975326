//! Decodes messages as prost does, but with an error that tells whose fault it is.

use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Prost's codec, except that bytes which are not a valid message, or text that is not UTF-8, give INVALID_ARGUMENT.
/// Tonic would report them as INTERNAL, as if the server were broken. The same code is generated for clients, so an
/// answer that cannot be read has that code, too.
pub struct ReadingCodec<T, U>(ProstCodec<T, U>);

/// See [`ReadingCodec`].
pub struct ReadingDecoder<U>(ProstDecoder<U>);

impl<T, U> Default for ReadingCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for ReadingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ReadingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ReadingDecoder(self.0.decoder())
    }
}

impl<U: Message + Default> Decoder for ReadingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        self.0.decode(buf).map_err(|error| {
            let mut details = ErrorDetails::with_error_info("MESSAGE_UNREADABLE", super::ERROR_DOMAIN, []);
            details.add_bad_request_violation("", error.message());
            Status::with_error_details(
                Code::InvalidArgument,
                format!("the message cannot be read: {}", error.message()),
                details,
            )
        })
    }
}
