//! Keys as people read them: `/table/index/value/value`.

use isochrone_base::keyspace::{COUNTER, META, SYSTEM, TABLE};
use isochrone_types::key::decode_key;
use isochrone_types::{Settings, text};

use crate::catalog::CatalogSnapshot;

fn escape(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect()
}

/// A key, with names where the catalog has them and values where they decode.
pub fn show(key: &[u8], catalog: &CatalogSnapshot, settings: &Settings) -> String {
    match key {
        [] => "/min".to_string(),
        [SYSTEM, rest @ ..] => {
            let (what, rest) = if key.starts_with(&META) {
                ("meta", &rest[1..])
            } else if key.starts_with(&COUNTER) {
                ("counter", &rest[1..])
            } else {
                ("system", rest)
            };
            format!("/{what}/{}", escape(rest))
        }
        [TABLE, a, b, c, d, rest @ ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            let table = catalog.table_by_key_id(id).map(|e| e.table.clone());
            let mut out = match &table {
                Some(t) => format!("/{}", t.name),
                None if id < isochrone_base::keyspace::FIRST_USER_TABLE => format!("/catalog{id}"),
                None => format!("/{id}"),
            };
            let Some((index, mut rest)) = rest.split_first_chunk::<4>() else {
                if !rest.is_empty() {
                    out.push_str(&format!("/{}", escape(rest)));
                }
                return out;
            };
            let index_id = u32::from_be_bytes(*index);
            let descriptor = table.as_ref().and_then(|t| {
                if index_id == 0 { Some(&t.primary) } else { t.indexes.iter().find(|i| i.id == index_id) }
            });
            let (Some(t), Some(i)) = (&table, descriptor) else {
                return format!("{out}/{index_id}/{}", escape(rest)).trim_end_matches('/').to_string();
            };
            out.push_str(&if index_id == 0 { "/primary".to_string() } else { format!("/{}", i.name) });
            let columns = i.columns.iter().chain(t.primary.columns.iter().filter(|_| index_id != 0));
            for (id, descending) in columns {
                if rest.is_empty() {
                    break;
                }
                let Some(at) = t.position(*id) else { break };
                let ty = t.columns[at].ty;
                match decode_key(&ty, *descending, &mut rest) {
                    Ok(v) if v.is_null() => out.push_str("/NULL"),
                    Ok(v) => out.push_str(&format!("/{}", text::to_text(&v, &ty, settings))),
                    Err(_) => break,
                }
            }
            if !rest.is_empty() {
                out.push_str(&format!("/{}", escape(rest)));
            }
            out
        }
        other => format!("/{}", escape(other)),
    }
}
