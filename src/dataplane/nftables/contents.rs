//! From the elements that the kernel lists to the entries that they are: the way back from
//! `element` and `affinity`.
//!
//! Pure. An endpoint that clients come back to is three elements, which have to fit together; what
//! does not is debris, to be taken away.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::affinity::{Found, How};
use super::program::element::{Comment, Element};
use super::program::numbers::{self, BARE_MASK, Class, Shape};
use super::program::sizes::Size;
use crate::core::ir::{Destination, Entry, Label, List, Route, SourcePolicy};
use crate::core::model::Endpoint;

/// What a table holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The entries.
    pub(crate) entries: Vec<Entry>,
    /// Destinations whose clients are remembered.
    pub(crate) remembering: Vec<Found>,
    /// Elements that belong to nothing.
    pub(crate) debris: Vec<Element<'static>>,
}

/// What was listed so far.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    entries: Vec<Entry>,
    /// Lists of more than 256 places, of which some are empty: where their route is among the
    /// entries, and how many endpoints they have.
    long: FxHashMap<(Destination, List), (usize, u32)>,
    pieces: BTreeMap<Destination, Pieces>,
}

/// The elements of a destination whose clients are remembered.
#[derive(Debug, Default)]
struct Pieces {
    route: Option<(Shape, Label, Option<u32>)>,
    external: Option<Shape>,
    endpoints: FxHashMap<u32, Endpoint>,
    ids: FxHashMap<u32, u32>,
}

impl Assembly {
    /// Takes in an element. Whether it is one that we write.
    pub(crate) fn take(&mut self, element: &Element<'_>) -> bool {
        let entry = match *element {
            Element::Shape {
                destination,
                list,
                shape,
                ref comment,
            } => return self.take_shape(destination, list, shape, comment.as_ref()),
            Element::Endpoint {
                destination,
                number,
                endpoint,
            } => {
                if numbers::id_list(number).is_some() {
                    let pieces = self.pieces.entry(destination).or_default();
                    pieces.endpoints.insert(number, endpoint);
                    return true;
                }
                let Some((list, index)) = numbers::place_of(number) else {
                    return false;
                };
                if let Some((_, count)) = self.long.get_mut(&(destination, list)) {
                    *count += 1;
                }
                Entry::Slot {
                    destination,
                    list,
                    index,
                    remembered: false,
                    endpoint,
                }
            }
            Element::Id {
                destination,
                number,
                id,
            } => {
                let pieces = self.pieces.entry(destination).or_default();
                pieces.ids.insert(number, id);
                return true;
            }
            Element::NoEndpoints {
                destination,
                ref label,
            } => Entry::NoEndpoints {
                destination,
                label: Label::new(label),
            },
            Element::Guarded { destination } => Entry::Guarded { destination },
            Element::AllowedSource {
                destination,
                network,
            } => Entry::AllowedSource {
                destination,
                network,
            },
            Element::Shared(shared) => Entry::Shared(shared),
            Element::Verdict { .. } => return false,
        };
        self.entries.push(entry);
        true
    }

    fn take_shape(
        &mut self,
        destination: Destination,
        list: List,
        shape: Shape,
        comment: Option<&Comment<'_>>,
    ) -> bool {
        let comment = comment.cloned().unwrap_or(Comment {
            label: "".into(),
            wanted_seconds: None,
        });
        let label = Label::new(&comment.label);
        match shape {
            Shape::Balance { class: 1.., .. } => {
                let pieces = self.pieces.entry(destination).or_default();
                match list {
                    List::Primary => pieces.route = Some((shape, label, comment.wanted_seconds)),
                    List::External => pieces.external = Some(shape),
                }
                return true;
            }
            // Where nobody outside is served, that is part of a route that remembers or not.
            Shape::Drop if list == List::External && self.pieces.contains_key(&destination) => {
                self.pieces.entry(destination).or_default().external = Some(shape);
                return true;
            }
            Shape::Drop | Shape::Balance { .. } => {}
        }
        if let Some(size) = shape.size()
            && !size.is_exact()
        {
            self.long
                .insert((destination, list), (self.entries.len(), 0));
        }
        let route = route(shape, shape.size().map_or(0, Size::places), None);
        self.entries.push(match list {
            List::Primary => Entry::Route {
                destination,
                route,
                label,
            },
            List::External => Entry::ExternalRoute { destination, route },
        });
        true
    }

    /// Destinations of which something is known to be remembered, with what is known of their ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (Destination, &FxHashMap<u32, u32>)> {
        self.pieces
            .iter()
            .map(|(destination, pieces)| (*destination, &pieces.ids))
    }

    /// The lists that the routes so far lead to, with their sizes: those whose endpoints have a
    /// place, or those whose endpoints have an id.
    pub(crate) fn lists(
        &self,
        remembered: bool,
    ) -> Box<dyn Iterator<Item = (Destination, List, Size)> + '_> {
        if remembered {
            return Box::new(self.pieces.iter().flat_map(|(destination, pieces)| {
                let primary = pieces.route.as_ref().and_then(|(shape, ..)| shape.size());
                let external = pieces.external.and_then(Shape::size);
                let lists = [(List::Primary, primary), (List::External, external)];
                lists
                    .into_iter()
                    .filter_map(|(list, size)| Some((*destination, list, size?)))
            }));
        }
        Box::new(self.entries.iter().filter_map(|entry| {
            let (destination, list, route) = match entry {
                Entry::Route {
                    destination, route, ..
                } => (destination, List::Primary, route),
                Entry::ExternalRoute { destination, route } => (destination, List::External, route),
                _ => return None,
            };
            match route {
                Route::Balance { endpoints, .. } => {
                    Some((*destination, list, Size::of(*endpoints)))
                }
                Route::Drop => None,
            }
        }))
    }

    /// Everything is there. `timeouts` are those that there are rules for.
    pub(crate) fn finish(self, timeouts: &BTreeMap<Class, u32>) -> Contents {
        let mut contents = Contents {
            entries: self.entries,
            ..Contents::default()
        };
        for (at, count) in self.long.into_values() {
            if let Some(
                Entry::Route {
                    route: Route::Balance { endpoints, .. },
                    ..
                }
                | Entry::ExternalRoute {
                    route: Route::Balance { endpoints, .. },
                    ..
                },
            ) = contents.entries.get_mut(at)
                && Size::of(count) == Size::of(*endpoints)
            {
                *endpoints = count;
            }
        }
        for (destination, pieces) in self.pieces {
            match pieces.fit(destination, timeouts) {
                Some((entries, found)) => {
                    contents.entries.extend(entries);
                    contents.remembering.push(found);
                }
                None => contents.debris.extend(pieces.elements(destination)),
            }
        }
        contents
    }
}

fn route(shape: Shape, endpoints: u32, affinity: Option<u32>) -> Route {
    match shape {
        Shape::Drop => Route::Drop,
        Shape::Balance { policy, lot, .. } => Route::Balance {
            policy,
            endpoints,
            draw: lot.draw(),
            affinity,
        },
    }
}

impl Pieces {
    /// The entries that these pieces are, if they fit together.
    fn fit(
        &self,
        destination: Destination,
        timeouts: &BTreeMap<Class, u32>,
    ) -> Option<(Vec<Entry>, Found)> {
        let (shape, label, wanted_seconds) = self.route.as_ref()?;
        let Shape::Balance { policy, class, .. } = *shape else {
            return None;
        };
        let seconds = *timeouts.get(&class)?;
        let how = How {
            wanted_seconds: wanted_seconds.unwrap_or(seconds),
            class,
            seconds,
            policy,
        };
        let (mut slots, mut ids) = (Vec::new(), Vec::new());
        let (mut counts, mut bares) = ([0; 2], FxHashSet::default());
        for (number, id) in &self.ids {
            let Some((list, index)) = numbers::place_of(*number) else {
                continue;
            };
            let bare = id & BARE_MASK;
            let fits = numbers::id_list(*id) == Some(list)
                && numbers::full_id(bare, class) == *id
                && self.ids.get(&bare) == Some(id);
            bares.insert(bare);
            let endpoint = *self.endpoints.get(id).filter(|_| fits)?;
            ids.push((list, endpoint, bare));
            counts[list as usize] += 1;
            slots.push(Entry::Slot {
                destination,
                list,
                index,
                remembered: true,
                endpoint,
            });
        }
        // An endpoint may have several places, and has one id.
        let nothing_else =
            self.ids.len() == ids.len() + bares.len() && self.endpoints.len() == bares.len();
        let [primary, external] = counts;
        let mut entries = vec![Entry::Route {
            destination,
            route: route(*shape, primary, Some(how.wanted_seconds)),
            label: label.clone(),
        }];
        let sizes = match (policy, self.external) {
            (SourcePolicy::ExternalLocal, Some(shape)) => {
                entries.push(Entry::ExternalRoute {
                    destination,
                    route: route(shape, external, Some(how.wanted_seconds)),
                });
                match shape {
                    Shape::Balance { class, lot, .. } => {
                        class == how.class && lot.size() == Size::of(external)
                    }
                    Shape::Drop => external == 0,
                }
            }
            (SourcePolicy::ExternalLocal, None) | (_, Some(_)) => false,
            (_, None) => external == 0,
        };
        if !nothing_else || !sizes || shape.size() != Some(Size::of(primary)) {
            return None;
        }
        entries.extend(slots);
        let found = Found {
            destination,
            how,
            ids,
        };
        Some((entries, found))
    }

    fn elements(self, destination: Destination) -> impl Iterator<Item = Element<'static>> {
        let shape = move |list| {
            move |shape| Element::Shape {
                destination,
                list,
                shape,
                comment: None,
            }
        };
        let route = self.route.map(|(shape, ..)| shape);
        let routes = route
            .map(shape(List::Primary))
            .into_iter()
            .chain(self.external.map(shape(List::External)));
        let ids = self.ids.into_iter().map(move |(number, id)| Element::Id {
            destination,
            number,
            id,
        });
        let endpoints = self.endpoints.into_iter();
        let endpoints = endpoints.map(move |(number, endpoint)| Element::Endpoint {
            destination,
            number,
            endpoint,
        });
        routes.chain(ids).chain(endpoints)
    }
}
