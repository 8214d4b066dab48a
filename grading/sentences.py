"""Gold answers that are sentences, as the V* rows have them: "The color of the boy's shirt is red."

Correct is what says the same beyond the question. The words of the question, and words that say nothing, are
taken off both sentences; what is left must be equal, in its order: "red", "It is red.", "The shirt is red."
all leave [red]. Where the question offers alternatives ("left or right"), their words count. A gold that
begins with yes or no is answered by the same word, or by the rest of it.

A question of yes or no is also answered by repeating it, affirmed or denied. A denial of something that the
gold does not say ("left, not right") adds nothing.

What is ambiguous is wrong: a denial of what the gold says, a word that neither question nor gold has, both
alternatives, a relation the other way round ("the tree is behind the car"), another subject ("The dog is
left" where the cat is). Synonyms are for a judge.
"""

import re

from grading.answers import DENIES, LONE_NUMBER_WORDS, unwrap, without_lead, yes_or_no


def words(text: str) -> list[str]:
    """Lower-case words; plurals and possessives without their s, numbers as digits.

    >>> words("the boy's two shoes are glass")
    ['the', 'boy', '2', 'shoe', 'are', 'glass']
    """
    found = []
    for word in re.findall(r"[a-z0-9]+(?:'s)?", text.lower().replace("n't", " not")):
        word = word.removesuffix("'s")
        word = re.sub(r"(?<=[a-z]{2})ies$", "y", word)
        word = re.sub(r"(?<=[a-z]{2}[^s])s$", "", word)
        found.append(str(LONE_NUMBER_WORDS.get(word, word)))
    return found


# Words that say nothing by themselves.
FILLER = """
    a an the this that these those there here it its he she his her they their them
    of to in on at by for with from and or as also is are was were be been being do does did has have had
    both very clearly visibly which what who whom whose where when how likely probably mostly mainly
    appear appears seem seems look looks made shown seen visible wear wearing
    says reads shows displays contains holds called named pair located placed positioned situated
    side part area color colored material
    image picture photo scene background foreground
"""
FILLER = frozenset(words(FILLER))
RELATIONS = set(words("between infront behind above below under ontop inside outside beside left right"))
# Seen from the other thing.
TURNED = {"left": "right", "above": "below", "over": "under", "infront": "behind"}
TURNED |= {other: word for word, other in TURNED.items()}
SEEN_FROM = re.compile(
    rf"(.+) (?:is|are)(?: (?:located|placed|on|to|at|the))* ({'|'.join(TURNED)})(?: side)?(?: of)? (the .+)"
)
ANYONE = {"person", "people", "someone", "individual", "object", "item", "thing", "one"}
READ = r"says?|reads?|shows?|displays?|contains?|holds?"
READS = re.compile(rf"\b(?:{READ})\b")
HAS = re.compile(r"\b(?:has|have|wearing|holding)\b")
VERB = re.compile(rf"\b(?:is|are|was|were|appears?|seems?|looks?|has|have|had|{READ})\b")
SEEN = re.compile(r"^i (?:can )?(?:see|count|think) (?:that )?")
# "In the image, ...", "After zooming in, ..."
LOOKED = re.compile(
    r"^(?:in|from|based on|according to|looking at|after|upon|by)\b[^,.]{0,40}"
    r"\b(?:image|picture|photo|scene|crop\w*|zoom\w*)\b[^,.]{0,30}, "
)
HOW_MANY = re.compile(r"how many (.+?) (?:are|is|were|do|does|can|have|has|in|on|at)\b")
STATES = re.compile(r"\b(?:is|are|was|were|has|have|does|do|did|can)\b|'re\b")
NOT = {"not", "no", "never", "cannot"}
SEE = {"can", "do", "you", "see", "any"}  # "Can you see any ...?"
# "What pattern does the tablecloth have?": what is asked for, of which an answer may speak.
ASKED_FOR = re.compile(
    r"\b(?:what|which) (?:kind of |type of )?(\w+) (?:is|are|was|were|does|do|did|can|has|have)\b"
    r"|\bwhat (?:is|are) the (?:\w+ )?(\w+) (?:of|on)\b|\b(\w+) or (?:\w+ ){1,3}\3\b"
)
# What stands after a noun and belongs to it.
AFTER_NOUN = re.compile(
    r"\b(?:(?:\w+ing|\w+ed|held|worn|seen|written|closest|nearest|next) (?=(?:the|a|an|his|her|in|on|by|to|at"
    r"|from|of|with|near|under|against|behind|infront|ontop|above|below|beside)\b)"
    r"|(?:on|in|at|by|with|near|next|behind|under|above|below|between|beside|infront|ontop|against|of|from|to"
    r"|that|who|which|facing|hanging|wearing|written|printed|worn|holding|standing|sitting|parked)\b)"
    r"|(?<=\w) the\b"
)
# "What is on the table?", "Which animal is sleeping?", not "What is the man doing?"
WH_SUBJECT = re.compile(
    r"\b(?:what|which|who)\b.*?\b(?:is|are|was|were)\b (?!the\b|a\b|an\b|his\b|her\b|their\b)"
)
# "in the box", not "on the left", "in the image"
NO_PLACE = "|".join([*RELATIONS, "side", "image", "picture", "photo", "scene"])
PLACES = re.compile(rf"\b(in|on|by|at|from) (?!(?:(?:the|this|its|his|her) )?(?:{NO_PLACE})\b)")
# Between things that are listed.
JOINED = re.compile(r", (?:and )?|\band\b|&")
# Between two claims: "The left shoe is white and the right shoe is black."
CLAUSES = re.compile(r",? (?:and|while|but) (?=(?:the|his|her|its|their)\b[^,]{0,60} (?:is|are|has) )")
# After "or": "right side of ..."
AFTER_CHOICE = re.compile(r"\b(?:side|of|the|than|to|from|in|it)\b|[?,]")
CHOSEN = {"on", "background", "foreground"}  # they say something where a question lets choose them
# What a sentence adds to its claim.
ADDED = re.compile(r",? (?:because|since|based on|judging|which|given|as (?:it|seen|shown|i)|than)\b.*", re.S)
ATTRIBUTE = re.compile(
    r"what (?:(?:is|are|was|were) the (?:\w+ )?"
    r"(?:color|material|shape|pose|size|pattern|number|name)s? (?:of|on)"
    r"|(?:color|material|shape|size|pattern) (?:is|are|was|were)) (.+)"
)


BEGINS = re.compile(r"\W*(yes|no)\b(?:\W*$|[^\w\s]\W*)", re.I)  # "No, ...", not the sign "NO ENTRY"


def is_sentence(gold: str) -> bool:
    """More than a few words, which other rules compare as they stand."""
    return len(gold.split()) > 4 or bool(VERB.search(gold.lower()))


def says_same(said: str, gold: str, question: str) -> bool:
    """Does an answer say what a gold sentence says beyond its question?

    >>> gold, question = "The color of the boy's shirt is red.", "What is the color of the boy's shirt?"
    >>> [says_same(s, gold, question) for s in ("red", "It is red.", "The shirt is red", "blue", "not red")]
    [True, True, True, False, False]
    >>> gold, question = "No, the dog is on the right side.", "Is the dog on the left side of the car?"
    >>> [says_same(s, gold, question) for s in ("No", "on the right side", "Yes", "left")]
    [True, True, False, False]
    """
    gold = plain(gold)
    if wanted := BEGINS.match(gold):
        if decided := yes_or_no(said) or restated(said, question):
            return decided == wanted[1]
        gold = gold[wanted.end() :]
    said = claim(with_gerunds(plain(said), f"{gold} {question}"), question)
    gold = without_denials(claim(gold, question), [])
    key = beyond(gold, question)
    said = without_denials(said, key)
    for way in filter(None, (said, turned(said))):
        vetoed = any(veto(way, gold, question) for veto in VETOES)
        if key and not vetoed and beyond(way, question) == key:
            return True
    return False


def claim(text: str, question: str) -> str:
    """What a sentence says of what is asked, without a letter before it and reasons behind it.

    >>> claim("B. The bag is red, because the zoom shows it.", "What color is the bag?")
    'the bag is red'
    >>> claim("The left shoe is white and the right shoe is black.", "What color is the left shoe?")
    'the left shoe is white'
    """
    text = re.sub(r"^\(?[a-i][.):] (?=\w)", "", plain(text))
    text = ADDED.sub("", text).strip(" .")
    text = re.sub(r"\bplaying (?=\w+$)", "", text)  # "tennis" says as much
    if plain(question).startswith("where "):
        text = re.sub(r"\binside(?: of)?\b", "in", text).replace("ontop of", "on")
    asked = set(words(plain(question)))
    about = [part for part in CLAUSES.split(text) if set(content(split_at_verb(part)[0])) <= asked]
    return about[0] if len(about) == 1 else text


# Each veto tells one way in which an answer with the right words says something else.


def denies_or_chooses(said: str, gold: str, question: str) -> bool:
    denies = bool(DENIES.search(said)) != bool(DENIES.search(gold))
    return denies or " or " in said and " or " not in gold


def in_another_order(said: str, gold: str, question: str) -> bool:
    """Which of two things is which, where there is a relation between them, or two claims.

    >>> question = "Is the red car on the left or right side of the police car?"
    >>> gold = "the red car is on the left side of the police car"
    >>> [in_another_order(said, gold, question) for said in ("the police car is left of the red car", "left")]
    [True, False]
    """
    model = words(gold if VERB.search(gold) else plain(question))
    known = [word for word in words(said) if word in model]
    if len(VERB.findall(gold)) > 1:
        return not in_order(known, model)
    asked = RELATIONS | set(words(plain(question)))
    return bool(RELATIONS & set(known)) and not in_order([word for word in known if word in asked], model)


def elsewhere(said: str, gold: str, question: str) -> bool:
    """Is a thing in, on or by another than gold and question have it?

    >>> [elsewhere(said, "it is in the box", "Where is it?") for said in ("on the box", "the box")]
    [True, False]
    """
    places = set(PLACES.findall(f"{gold} {plain(question)}"))
    return bool(places) and not set(PLACES.findall(said)) <= places


def counts_another(said: str, gold: str, question: str) -> bool:
    """Does an answer to "how many" speak of things of the question, but not of those that are counted?

    >>> question = "How many sheep are near the fence?"
    >>> [counts_another(said, "", question) for said in ("4", "4 sheep", "4 fences")]
    [False, False, True]
    """
    counted = HOW_MANY.search(plain(question))
    spoken = set(words(said))
    asked = set(content(plain(question)))
    return bool(counted) and bool(asked & spoken) and head(counted[1]) not in spoken


def speaks_of_another(said: str, gold: str, question: str) -> bool:
    """Is the subject of an answer another thing of the question than the one that is asked about?

    >>> question = "What is the color of the scarf worn by the woman?"
    >>> [speaks_of_another(f"the woman {says}", "red", question) for says in ("is red", "has a red scarf")]
    [True, False]
    """
    subject, predicate = split_at_verb(said)
    gold_subject, _ = split_at_verb(gold)
    noun = head(subject)
    asked = content(plain(question))
    things = {thing_of(question), head(gold_subject)} - {""} or set(asked[:1])
    if noun in {"", *things, *asked_for(question)}:  # "The man on the right", for the man on the left
        sides = RELATIONS & set(words(gold_subject))
        return bool(sides) and not RELATIONS & set(words(subject)) <= sides
    if noun not in asked:  # one that a gold has behind its verb: "The suitcase is on the man."
        in_front = WH_SUBJECT.search(plain(question)) or head(gold_subject) in ("", *asked_for(question))
        return noun in words(gold) and not in_front
    has = things & set(words(predicate)) and HAS.search(said)
    return not (has or READS.search(said) or noun.isdigit())


VETOES = (denies_or_chooses, in_another_order, elsewhere, counts_another, speaks_of_another)


def turned(said: str) -> str:
    """A relation seen from its other side.

    >>> turned("the bench is on the left side of the bicycle"), turned("the bench is left")
    ('the bicycle is right of the bench', '')
    """
    found = SEEN_FROM.fullmatch(said)
    return f"{found[3]} is {TURNED[found[2]]} of {found[1]}" if found else ""


def restated(said: str, question: str) -> str | None:
    """The yes or no of an answer that repeats a question, affirmed or denied; its words in their order.

    >>> question = "Is the dog to the left of the cat?"
    >>> [restated(s, question) for s in ("The dog is left of the cat.", "It isn't to the left of the cat.")]
    ['yes', 'no']
    >>> [restated(s, question) for s in ("The cat is left of the dog.", "The dog is.", "The cat is gray.")]
    [None, None, None]
    """
    states = STATES.search(said.lower().replace("n't", " not"))
    said = plain(said)
    question = plain(question)
    unclear = " or " in f"{question} {said}" or DENIES.search(question) or elsewhere(said, "", question)
    if not states or unclear:
        return None
    if said.startswith("there "):
        return there_is(said, question)
    asked = content(question)
    spoken = [word for word in content(said) if word not in NOT]
    to_its_end = asked[-1:] == spoken[-1:] or re.search(r"\b(?:them|it|there)$", said)
    if not (to_its_end and set(spoken) - set(asked[:1]) and in_order(spoken, asked)):
        return None
    return "no" if DENIES.search(said) else "yes"


def there_is(said: str, question: str) -> str | None:
    """Yes or no from what there is, or is not: what is asked for, all of it, or no more than it.

    >>> [there_is(f"there is {what}", "is there a red car?") for what in ("a big red car", "a car", "no car")]
    ['yes', None, 'no']
    """
    if re.search(r"\b(?:his|her|its|their)\b", said):
        question = re.sub(r"\b\w+'s\b", "", question)
    asked = [word for word in content(question) if word not in SEE]
    spoken = [word for word in content(said) if word not in NOT | SEE]
    if head(said) != head(question):
        return None
    if DENIES.search(said):
        return "no" if spoken == asked or set(spoken) <= set(words(AFTER_NOUN.split(question)[0])) else None
    return "yes" if in_order(asked, spoken) and RELATIONS & set(spoken) <= set(asked) else None


def in_order(some: list[str], all_words: list[str]) -> bool:
    """Are these, but for words that say nothing, among all, in the same order?

    >>> in_order(["dog", "is", "left"], ["dog", "left", "cat"]), in_order(["cat", "dog"], ["dog", "cat"])
    (True, False)
    """
    rest = iter(all_words)
    return all(word in rest for word in some if word not in FILLER)


def without_denials(said: str, key: list[str]) -> str:
    """An answer without the parts that deny what is not in the gold's key.

    >>> without_denials("it is left, not right", ["left"]), without_denials("not left", ["left"])
    ('it is left', 'not left')
    """
    parts = re.split(r"[,;.]\s", said)
    known = set(" ".join(key).split())
    kept = [part for part in parts if not DENIES.search(part) or known & set(words(part))]
    return ", ".join(kept) if kept else said


def thing_of(question: str) -> str:
    """The noun whose color or number a question asks for.

    >>> thing_of("What color is the scarf worn by the woman?"), thing_of("How many cups are there?")
    ('scarf', 'cup')
    """
    found = ATTRIBUTE.match(plain(question)) or HOW_MANY.search(plain(question))
    return head(found[1]) if found else ""


def head(subject: str) -> str:
    """The noun of a subject, without what stands after it; "" for a pronoun.

    >>> head("the color of the boy's shirt"), head("the window behind the couch"), head("it")
    ('shirt', 'window', '')
    """
    subject = re.sub(r"^the (?:color|material|shape|pattern|pose|size|number|name) of ", "", subject.strip())
    found = [word for word in words(AFTER_NOUN.split(subject)[0]) if word not in FILLER]
    return found[-1] if found else ""


def with_gerunds(said: str, other: str) -> str:
    """An answer in whose place of "rides" stands "is riding", where the other text has that.

    >>> with_gerunds("he rides a horse and sits", "The man is riding a horse, sitting.")
    'he is riding a horse and is sitting'
    """
    for stem in re.findall(r"\b(\w{2,})ing\b", other.lower()):
        short = stem[:-1] if stem[-1] == stem[-2] else stem
        forms = rf"\b(?:{short}e?s|{stem}e?s|{stem[:-1]}ies)\b|(?<=\bthey ){stem}e?\b"
        said = re.sub(forms, f"is {stem}ing", said)
    return said


def asked_for(question: str) -> set[str]:
    """The thing of which a question asks the kind, or between two of which it lets choose.

    >>> asked_for("What pattern does it have?"), asked_for("Is it a blue bag or a brown bag?")
    ({'pattern'}, {'bag'})
    """
    return {words(name)[-1] for found in ASKED_FOR.findall(plain(question)) for name in found if name}


def content(text: str) -> list[str]:
    """The words of a text that say something."""
    return [word for word in words(text) if word not in FILLER]


def beyond(text: str, question: str) -> list[str]:
    """The words that a text says beyond a question, in their order; single ones that "and" joins as one.

    >>> beyond("it is white and red", "Which colors?"), beyond("a red shirt and blue shorts", "What is it?")
    (['red and white'], ['red', 'shirt', 'blue', 'short'])
    """
    question = plain(question)
    silent = (FILLER | set(words(question))) - alternatives(question)
    subject, predicate = split_at_verb(text)
    if predicate:
        text = f"{' '.join(word for word in content(subject) if word not in ANYONE)} {predicate}"
    parts = [[word for word in words(part) if word not in silent] for part in JOINED.split(text)]
    parts = [part for part in parts if part]
    # No article ends a sentence: "The letter on the tile is A." says the letter.
    if re.search(r"(?:^|\W)a\W*$", text.lower()):
        parts.append(["a"])
    if all(len(part) == 1 for part in parts[:-1]) and parts:  # "white and red", also before a noun
        return [" and ".join(sorted(part[0] for part in parts)), *parts[-1][1:]]
    return [word for part in parts for word in part]


def alternatives(question: str) -> set[str]:
    """The words between which a question lets choose.

    >>> sorted(alternatives("is the car on the left or right side of the tree?"))
    ['left', 'right']
    >>> sorted(alternatives("is the flag blue and yellow or red and yellow?")), alternatives("what is it?")
    (['blue', 'red', 'yellow'], set())
    """
    left, found, right = question.partition(" or ")
    left = left.rpartition(", ")[2]  # "What is it made of, brick or stone?"
    if determined := re.match(r"(?:(?:to|on|at|in) )?(?:the|an?) ", right):
        right = right[determined.end() :]
    else:  # "Are the zebras standing or lying down?": not the zebras
        left = re.sub(r"\b(?:the|a|an) \w+(?= \w)", "", left)
    right = words(AFTER_CHOICE.split(right)[0])
    left = words(re.sub(r"\b(?:side|the|an?|to|on)(?= )", "", left))
    for alike in (RELATIONS.__contains__, lambda word: word.endswith("ing"), str.isdigit):
        if right and alike(right[0]):  # "in front of the car or behind it", "two or four windows"
            left = [word for word in left if alike(word)]
            right = right[:1]
    left = left[-len(right) :]
    if left[-1:] == right[-1:] and "and" not in right:  # "long sleeves or short sleeves"
        left = left[:-1]
        right = right[:-1]
    return set(left + right) - FILLER | CHOSEN & set(left + right) if found else set()


def plain(text: str) -> str:
    """Lower case, without wrapping and lead, in one spelling, "in front of" in one word.

    >>> plain("The answer is: Dark-grey."), plain("It's in front of the wooden bench")
    ('dark gray', 'infront of the wood bench')
    """
    text = without_lead(" ".join(unwrap(text).split())).lower().removeprefix("that ")
    text = SEEN.sub("", LOOKED.sub("", text)).removeprefix("the number of ")
    text = text.replace("grey", "gray").replace("colour", "color").replace("wooden", "wood")
    text = text.replace("in front of", "infront of").replace("on top of", "ontop of").replace("'re ", " are ")
    text = re.sub(r"\b(he|she|there)'s\b", r"\1 is", text)
    text = re.sub(r"\b(the \w+) one$", r"\1", text.rstrip(" ."))
    text = re.sub(r"\b(\w+) that (?:is|are) (\w+)$", r"\2 \1", text)  # "an umbrella that is red"
    text = re.sub(r"\b(?:the )?(\w+)'s (left|right) side\b", r"the \2 side of the \1", text)
    text = re.sub(r"\b(left|right)[- ]hand\b", r"\1", text).replace("-", " ")
    return text.strip(" .")


def split_at_verb(sentence: str) -> tuple[str, str]:
    """Subject and predicate; ("", "") where there is no verb."""
    verb = VERB.search(sentence)
    return (sentence[: verb.start()], sentence[verb.end() :]) if verb else ("", "")
