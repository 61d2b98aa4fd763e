"""The sentences of the demo corpus: a grammar of some four hundred words."""

from __future__ import annotations

import random
from collections.abc import Iterator

WORDS = {
    "NAME": "james alice victor hazel quentin jack zoe felix maria oscar naomi peter ruby simon vera walter yvonne "
    "isaac julia kevin laura max nora olivia paul rachel thomas tessa hugo daphne ivan bella",
    "PERSON": "doctor farmer teacher sailor baker judge queen soldier painter singer driver nurse lawyer pilot "
    "waiter cousin uncle visitor student mayor carpenter stranger child grandmother",
    "ANIMAL": "dog cat horse fox zebra rabbit tiger eagle wolf donkey squirrel monkey turtle spider camel penguin "
    "lizard goose beaver elephant",
    "THING": "table window bottle basket hammer letter picture mirror blanket candle engine ticket pencil jacket "
    "button kettle violin piano camera lantern ladder wagon carpet cushion bucket map clock drum key lamp spoon "
    "quilt box jewel rope guitar newspaper umbrella telephone sandwich",
    "PLURAL": "apples oranges boxes carrots potatoes onions cherries books coins shoes gloves stamps buttons eggs "
    "cups plates chairs bricks flowers tickets feathers pigeons sheep quarters",
    "PLACE": "garden kitchen market station harbor castle village forest valley bridge river mountain island library "
    "museum school hospital factory office church theater airport desert cellar stable zoo",
    "QUALITY": "old young happy quiet clever gentle brave lazy angry hungry tired tall strange famous friendly quick",
    "LOOK": "small huge heavy broken empty golden wooden dusty narrow round shiny ancient expensive simple dirty "
    "square yellow purple orange green brown black silver white",
    "DID": "found carried painted repaired dropped opened washed borrowed stole moved pushed pulled noticed touched "
    "lifted bought sold wanted lost hid ordered examined measured covered kept cleaned",
    "DO": "find carry paint repair drop open wash borrow move push pull notice touch lift buy sell order examine "
    "measure cover keep clean bring fetch",
    "ACTED": "laughed slept waited jumped danced whispered listened cried shouted smiled vanished stumbled worked "
    "traveled studied rested walked played sang swam argued yawned",
    "HOW": "quietly slowly quickly happily sadly badly gladly politely calmly loudly often again together outside "
    "alone suddenly everywhere upstairs",
    "WHERE": "near behind beside under above inside across around beyond past",
    "NUMBER": "two three five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty forty fifty sixty "
    "seventy eighty ninety",
    "DAY": "monday tuesday wednesday thursday friday saturday sunday",
    "MONTH": "january february march april may june july august september october november december",
    "LATER": "today tonight tomorrow",
    "WEATHER": "rainy sunny windy cloudy foggy frozen stormy warm cold humid",
    "CAUSE": "because although while before after until since unless",
}
TEMPLATES = """
NAME ACTED HOW | the QUALITY PERSON ACTED HOW | the ANIMAL ACTED WHERE the PLACE | NAME DID the LOOK THING
the PERSON DID the LOOK THING WHERE the PLACE | NAME DID NUMBER LOOK PLURAL | the ANIMAL and the ANIMAL ACTED HOW
please DO the THING WHERE the PLACE | can you DO NUMBER PLURAL on DAY | we DID a LOOK THING in MONTH
it was WEATHER WHERE the PLACE on DAY | NAME will DO the LOOK THING LATER | the THING is WHERE the LOOK THING
NUMBER PLURAL cost NUMBER dollars | do not DO the THING LATER | who DID the LOOK THING in the PLACE
NAME ACTED CAUSE the QUALITY PERSON DID the THING | why was the QUALITY ANIMAL WHERE the PLACE
the PERSON and NAME ACTED HOW | there are NUMBER LOOK PLURAL in the PLACE | NAME met the QUALITY PERSON WHERE the PLACE
the WEATHER PLACE was QUALITY | on DAY the PERSON will DO NUMBER PLURAL | NAME gave the QUALITY PERSON the LOOK THING
i think the QUALITY ANIMAL DID the THING | they ACTED CAUSE it was WEATHER on DAY | in MONTH NAME DID the THING HOW
she never DID the LOOK THING | he always ACTED WHERE the LOOK PLACE | NAME asked the PERSON for NUMBER LOOK PLURAL
"""


def sentences(seed: int) -> Iterator[str]:
    """Endless sentences of 3 to 10 words, no two alike."""
    generator = random.Random(f"sentences {seed}")
    templates = [template.split() for line in TEMPLATES.strip().splitlines() for template in line.split("|")]
    words = {slot: choices.split() for slot, choices in WORDS.items()}
    seen = set()
    while True:
        template = generator.choice(templates)
        sentence = " ".join(generator.choice(words[slot]) if slot in words else slot for slot in template)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence
