//! What an operator's tool and a node say to each other, as plain data: one [`Request`], one [`Response`].
//!
//! They travel as the payload of a call on the cluster port:
//!
//!     request    0 (an admin request)  version  kind  fields
//!     response                         version  kind  fields
//!
//! Numbers are varints, texts are length-prefixed UTF-8 (`isochrone_base::codec`).
//!
//! Invariants
//!   P1  `decode(encode(x)) == x`.
//!   P2  Any bytes either decode or are refused; they never panic and never allocate by a length they claim.
//!   P3  Bytes of another version are refused by that name, not misread: tool and node may be of different releases.
//!
//! Every request may be repeated: a tool whose call was lost simply asks again.
//! Not here: how a node finds the answers, and how a tool shows them.
#![forbid(unsafe_code)]

pub mod address;

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_u64};
use isochrone_base::{Bytes, NodeId};

/// The first byte of a payload on the cluster port that holds a [`Request`].
pub const ADMIN_REQUEST: u8 = 0;

/// The version of both encodings.
const VERSION: u8 = 1;

/// What a tool asks of the node it is connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Make a cluster of the nodes that you were told to join. Asked again and again until it is done; answered by
    /// [`Response::Waiting`], [`Response::Initialised`] or [`Response::AlreadyInitialised`].
    Init,
    /// Who is there? Answered by [`Response::Nodes`].
    NodeList,
    /// Let a node lead nothing, so that stopping it disturbs nobody. Asked again and again; answered by
    /// [`Response::Draining`] until it is [`Response::Drained`].
    Drain {
        /// Which; need not be the node that is asked.
        node: NodeId,
    },
    /// Give the replicas of one node to another. Asked again and again; answered by [`Response::Replacing`] until it is
    /// [`Response::Replaced`].
    Replace {
        /// Who holds them; may be gone.
        old: NodeId,
        /// Who gets them; has none.
        new: NodeId,
    },
}

/// What the node answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// `Init` needs more nodes.
    Waiting {
        /// Cluster addresses that answer, the asked node's own included.
        answered: Vec<String>,
        /// Those that do not: `HOST:PORT`, or `HOST:PORT (reason)`.
        missing: Vec<String>,
    },
    /// This `Init` made the cluster.
    Initialised {
        /// Its id.
        cluster: u128,
        /// Node numbers and cluster addresses.
        nodes: Vec<(NodeId, String)>,
    },
    /// An earlier `Init` did.
    AlreadyInitialised {
        /// The cluster's id.
        cluster: u128,
        /// The number of the node that answers.
        node: NodeId,
    },
    /// The nodes, by number.
    Nodes(Vec<NodeRow>),
    /// The node still leads shards.
    Draining {
        /// How many.
        leaders_left: u32,
    },
    /// The node leads nothing, and will not be given anything.
    Drained,
    /// Some shards are not where they shall be.
    Replacing {
        /// How many; `u32::MAX`: not known now.
        shards_left: u32,
    },
    /// All shards are where they shall be.
    Replaced,
    /// It cannot be done; asking again does not help.
    Error {
        /// Why, and what to do about it.
        message: String,
    },
}

/// A node, as the cluster sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRow {
    /// Its number.
    pub node: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// Where SQL clients reach it; empty when that is not known.
    pub sql: String,
    /// Is it there?
    pub state: NodeState,
    /// How many shards it leads.
    pub leaders: u32,
    /// How many replicas it has.
    pub replicas: u32,
}

/// Whether a node is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeState {
    /// It renews its liveness record.
    Live,
    /// Its liveness record has expired.
    Dead,
    /// It is there, and an operator wants it to lead nothing.
    Draining,
}

impl NodeState {
    /// The word operators see.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Live => "live",
            NodeState::Dead => "dead",
            NodeState::Draining => "draining",
        }
    }
}

impl Request {
    /// The payload, [`ADMIN_REQUEST`] in front.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![ADMIN_REQUEST, VERSION];
        match self {
            Request::Init => out.push(1),
            Request::NodeList => out.push(2),
            Request::Drain { node } => {
                out.push(3);
                put_u64(&mut out, u64::from(node.0));
            }
            Request::Replace { old, new } => {
                out.push(4);
                put_u64(&mut out, u64::from(old.0));
                put_u64(&mut out, u64::from(new.0));
            }
        }
        out.into()
    }

    /// The inverse of [`Request::encode`].
    pub fn decode(payload: Bytes) -> Result<Request, DecodeError> {
        let mut r = Reader::new(payload);
        if r.u8()? != ADMIN_REQUEST {
            return Err(DecodeError::Invalid("admin request"));
        }
        check_version(&mut r)?;
        let request = match r.u8()? {
            1 => Request::Init,
            2 => Request::NodeList,
            3 => Request::Drain { node: node(&mut r)? },
            4 => Request::Replace { old: node(&mut r)?, new: node(&mut r)? },
            _ => return Err(DecodeError::Invalid("kind of admin request")),
        };
        r.finish()?;
        Ok(request)
    }
}

impl Response {
    /// The payload of the answer.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        match self {
            Response::Waiting { answered, missing } => {
                out.push(1);
                put_texts(&mut out, answered);
                put_texts(&mut out, missing);
            }
            Response::Initialised { cluster, nodes } => {
                out.push(2);
                out.extend_from_slice(&cluster.to_be_bytes());
                put_u64(&mut out, nodes.len() as u64);
                for (node, address) in nodes {
                    put_u64(&mut out, u64::from(node.0));
                    put_bytes(&mut out, address.as_bytes());
                }
            }
            Response::AlreadyInitialised { cluster, node } => {
                out.push(3);
                out.extend_from_slice(&cluster.to_be_bytes());
                put_u64(&mut out, u64::from(node.0));
            }
            Response::Nodes(rows) => {
                out.push(4);
                put_u64(&mut out, rows.len() as u64);
                for row in rows {
                    put_u64(&mut out, u64::from(row.node.0));
                    put_bytes(&mut out, row.address.as_bytes());
                    put_bytes(&mut out, row.sql.as_bytes());
                    out.push(match row.state {
                        NodeState::Live => 0,
                        NodeState::Dead => 1,
                        NodeState::Draining => 2,
                    });
                    put_u64(&mut out, u64::from(row.leaders));
                    put_u64(&mut out, u64::from(row.replicas));
                }
            }
            Response::Draining { leaders_left } => {
                out.push(5);
                put_u64(&mut out, u64::from(*leaders_left));
            }
            Response::Drained => out.push(6),
            Response::Replacing { shards_left } => {
                out.push(8);
                put_u64(&mut out, u64::from(*shards_left));
            }
            Response::Replaced => out.push(9),
            Response::Error { message } => {
                out.push(7);
                put_bytes(&mut out, message.as_bytes());
            }
        }
        out.into()
    }

    /// The inverse of [`Response::encode`].
    pub fn decode(payload: Bytes) -> Result<Response, DecodeError> {
        let mut r = Reader::new(payload);
        check_version(&mut r)?;
        let response = match r.u8()? {
            1 => Response::Waiting { answered: texts(&mut r)?, missing: texts(&mut r)? },
            2 => {
                let cluster = cluster(&mut r)?;
                let mut nodes = Vec::new();
                for _ in 0..r.count(2)? {
                    nodes.push((node(&mut r)?, text(&mut r)?));
                }
                Response::Initialised { cluster, nodes }
            }
            3 => Response::AlreadyInitialised { cluster: cluster(&mut r)?, node: node(&mut r)? },
            4 => {
                let mut rows = Vec::new();
                for _ in 0..r.count(6)? {
                    rows.push(NodeRow {
                        node: node(&mut r)?,
                        address: text(&mut r)?,
                        sql: text(&mut r)?,
                        state: match r.u8()? {
                            0 => NodeState::Live,
                            1 => NodeState::Dead,
                            2 => NodeState::Draining,
                            _ => return Err(DecodeError::Invalid("state of a node")),
                        },
                        leaders: r.u32()?,
                        replicas: r.u32()?,
                    });
                }
                Response::Nodes(rows)
            }
            5 => Response::Draining { leaders_left: r.u32()? },
            6 => Response::Drained,
            8 => Response::Replacing { shards_left: r.u32()? },
            9 => Response::Replaced,
            7 => Response::Error { message: text(&mut r)? },
            _ => return Err(DecodeError::Invalid("kind of admin response")),
        };
        r.finish()?;
        Ok(response)
    }
}

fn check_version(r: &mut Reader) -> Result<(), DecodeError> {
    match r.u8()? {
        VERSION => Ok(()),
        _ => Err(DecodeError::Invalid("version of an admin message")),
    }
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_u64(out, texts.len() as u64);
    for text in texts {
        put_bytes(out, text.as_bytes());
    }
}

fn texts(r: &mut Reader) -> Result<Vec<String>, DecodeError> {
    (0..r.count(1)?).map(|_| text(r)).collect()
}

fn text(r: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(r.key()?).map_err(|_| DecodeError::Invalid("text"))
}

fn node(r: &mut Reader) -> Result<NodeId, DecodeError> {
    Ok(NodeId(r.u32()?))
}

fn cluster(r: &mut Reader) -> Result<u128, DecodeError> {
    Ok(r.txn()?.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Init),
            Just(Request::NodeList),
            any::<u32>().prop_map(|n| Request::Drain { node: NodeId(n) }),
            any::<(u32, u32)>().prop_map(|(o, n)| Request::Replace { old: NodeId(o), new: NodeId(n) }),
        ]
    }

    fn row() -> impl Strategy<Value = NodeRow> {
        let state = prop_oneof![Just(NodeState::Live), Just(NodeState::Dead), Just(NodeState::Draining)];
        (any::<u32>(), any::<String>(), any::<String>(), state, any::<u32>(), any::<u32>()).prop_map(
            |(node, address, sql, state, leaders, replicas)| NodeRow {
                node: NodeId(node),
                address,
                sql,
                state,
                leaders,
                replicas,
            },
        )
    }

    fn response() -> impl Strategy<Value = Response> {
        prop_oneof![
            (any::<Vec<String>>(), any::<Vec<String>>())
                .prop_map(|(answered, missing)| Response::Waiting { answered, missing }),
            (any::<u128>(), any::<Vec<(u32, String)>>()).prop_map(|(cluster, nodes)| {
                let nodes = nodes.into_iter().map(|(n, a)| (NodeId(n), a)).collect();
                Response::Initialised { cluster, nodes }
            }),
            (any::<u128>(), any::<u32>())
                .prop_map(|(cluster, n)| Response::AlreadyInitialised { cluster, node: NodeId(n) }),
            prop::collection::vec(row(), 0..5).prop_map(Response::Nodes),
            any::<u32>().prop_map(|leaders_left| Response::Draining { leaders_left }),
            Just(Response::Drained),
            any::<u32>().prop_map(|shards_left| Response::Replacing { shards_left }),
            Just(Response::Replaced),
            any::<String>().prop_map(|message| Response::Error { message }),
        ]
    }

    proptest! {
        #[test]
        fn p1_roundtrip(request in request(), response in response()) {
            prop_assert_eq!(request.encode()[0], ADMIN_REQUEST);
            prop_assert_eq!(Request::decode(request.encode()).unwrap(), request);
            prop_assert_eq!(Response::decode(response.encode()).unwrap(), response);
        }

        #[test]
        fn p2_garbage_is_refused(bytes: Vec<u8>, kind in 0u8..9) {
            let behind = |head: &[u8]| Bytes::from([head, &bytes].concat());
            let _ = Request::decode(bytes.clone().into());
            let _ = Response::decode(bytes.clone().into());
            let _ = Request::decode(behind(&[ADMIN_REQUEST, VERSION, kind]));
            let _ = Response::decode(behind(&[VERSION, kind]));
        }

        #[test]
        fn p2_no_prefix_decodes(request in request(), response in response()) {
            let (request, response) = (request.encode(), response.encode());
            for end in 0..request.len() {
                prop_assert!(Request::decode(request.slice(..end)).is_err());
            }
            for end in 0..response.len() {
                prop_assert!(Response::decode(response.slice(..end)).is_err());
            }
        }
    }

    #[test]
    fn p2_a_claimed_length_allocates_nothing() {
        let mut claim = vec![VERSION, 4];
        put_u64(&mut claim, u64::MAX);
        assert_eq!(Response::decode(claim.into()), Err(DecodeError::Invalid("count")));
    }

    #[test]
    fn p3_another_version_is_refused_by_name() {
        let next = Bytes::from_static(&[ADMIN_REQUEST, VERSION + 1, 1]);
        let refused = Request::decode(next).unwrap_err();
        assert_eq!(refused.to_string(), "invalid version of an admin message");
    }
}
