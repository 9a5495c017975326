//! S3's list of unfinished uploads, which the library lacks.
//!
//! If the answer to the beginning of an upload was lost, or its node died before recording it, only the service knows
//! about it.

use http::{HeaderMap, Method, StatusCode};
use object_store::path::Path;
use object_store::{Error, MultipartId};
use serde::Deserialize;

use super::signed::{Signed, generic};

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>. If there are more, they are listed
/// once these are gone.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Upload", default)]
    uploads: Vec<ListedUpload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedUpload {
    key: String,
    upload_id: MultipartId,
}

/// The unfinished uploads for the object at `path`: `ListMultipartUploads` with its key as the prefix.
pub(super) async fn list(signed: &Signed, path: &Path) -> Result<Vec<MultipartId>, Error> {
    let query = [("uploads", ""), ("prefix", path.as_ref())];
    let response = signed.send(Method::GET, &Path::default(), &query, HeaderMap::new()).await?;
    if response.status() != StatusCode::OK {
        return Err(generic(format!("the service answered {}", response.status())));
    }
    let body = response.into_body().bytes().await.map_err(generic)?;
    let text = std::str::from_utf8(&body).map_err(generic)?;
    parse(text, path).map_err(generic)
}

fn parse(text: &str, path: &Path) -> Result<Vec<MultipartId>, quick_xml::DeError> {
    let Listed { uploads } = quick_xml::de::from_str(text)?;
    // Other keys may begin with the same prefix.
    let of_path = uploads.into_iter().filter(|upload| upload.key == path.as_ref());
    Ok(of_path.map(|upload| upload.upload_id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_of_other_objects_are_left_out() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
              <Bucket>b</Bucket><KeyMarker/><Prefix>blobs/1</Prefix><IsTruncated>false</IsTruncated>
              <Upload><Key>blobs/1</Key><UploadId>one</UploadId><Initiated>2026-11-27T00:00:00Z</Initiated></Upload>
              <Upload><Key>blobs/10</Key><UploadId>two</UploadId></Upload>
              <Upload><Key>blobs/1</Key><UploadId>three &amp; four</UploadId></Upload>
            </ListMultipartUploadsResult>"#;
        assert_eq!(parse(text, &Path::from("blobs/1")).unwrap(), ["one", "three & four"]);
        assert!(
            parse("<ListMultipartUploadsResult></ListMultipartUploadsResult>", &Path::from("x")).unwrap().is_empty()
        );
        assert!(parse("<html>", &Path::from("x")).is_err());
    }
}
