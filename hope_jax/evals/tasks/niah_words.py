"""Words that keys of needles are made of (`adjective-noun`): common English ones, chosen for this project."""

_ADJECTIVES = """
able amber ancient aqueous arctic bitter blue bold brave brief bright bronze calm careful cheerful clever
cloudy coastal cosmic crimson crisp curious damp daring deep distant dusty eager early earnest eastern
elegant emerald faint fancy fertile fierce foggy fresh frosty gentle giant glad golden graceful grand
green hasty hidden hollow honest humble icy idle ivory jolly keen kind large lavish light little lively
lonely loud lucky mellow merry mighty misty modest narrow noble northern olive orange patient pearly plain
polite proud purple quaint quick quiet rapid rare rosy round royal rustic salty scarlet sharp shiny silent
silver simple sleepy slender smooth snowy solemn southern spare steady stormy sturdy subtle sunny swift
tame tender tidy tiny upper vast velvet violet warm western wide wild windy wise witty young
"""

_NOUNS = """
acorn anchor apple arrow autumn badger barrel basket beacon bell berry blanket boat bottle bridge brook
bucket button candle canyon carpet castle cedar chapel cherry clock cloud comet compass copper coral
cottage cradle cricket crown desert dolphin donkey dragon eagle ember falcon feather fern fiddle forest
fountain fox garden glacier goose grove hammer harbor harvest hawk hedge helmet heron hill honey horizon
island jacket kettle kitten ladder lantern leaf lemon library lily lion lizard maple marble market meadow
melon mill mirror monk moon moth mountain needle oak oar ocean onion orchard otter owl paddle palace
parrot pebble pepper piano pillow pine planet plough pond poplar prairie quarry quill rabbit raven ribbon
river robin rocket saddle sail shepherd spoon sparrow spider stable station stone stork summer swallow
table temple thistle thunder tiger tower trumpet tulip tunnel turtle valley village violin walnut wagon
whale willow window winter yarn
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
