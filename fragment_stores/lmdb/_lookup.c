/* Many keys of one LMDB database looked up at once, from the memory map of a read transaction.
 *
 * What a lookup costs is not work but waiting: of a page that no cache holds, of the node in it, of the next page. One
 * mdb_get after another waits for each in turn. Here all keys go down the tree together, a level at a time: while one
 * key's page is on its way from memory the next key is compared (software prefetching; the idea is that of Chen, Gibbons
 * and Mowry, "Improving index performance through prefetching", SIGMOD 2001). `find` returns where the values lie, and
 * `join` copies them into a frame, the next ones on their way again. With 10,000 of 100,000 agents woken both together
 * take 0.45 us for a value of 1 KB where mdb_get through py-lmdb and bytes.join take 1.2.
 *
 * The format is that of LMDB 0.9, data version 1 (MDB_page, MDB_node, MDB_db and MDB_meta of libraries/liblmdb/mdb.c),
 * on a machine with 64 bits, little-endian. It is only read, and nothing in it is believed: each page has to carry its
 * own number and the flags of its kind, and each node has to lie within its page. Where anything is not as expected the
 * answer is None, and the caller asks LMDB itself, which names what is wrong. (That the file has all pages up to the last
 * one is seen to where it is opened: a page that it has lost ends the process, here as in LMDB.)
 *
 * The snapshot is that of the caller's transaction, from which the database's record was read. Its pages stay as they
 * are for as long as the transaction is open (copy on write), and so do the places that are returned.
 *
 * A page that no memory has takes the disk's time, and whoever looks at it waits: 100 us, or many milliseconds behind
 * others. `find` waits for a few at most. It watches its clock, and gives up (BlockingIOError) if the kernel says that
 * pages had to be read; asked to, it looks beforehand whether the pages of some keys are there (mincore(2), 1 us each).
 * `warm` is for another thread: it asks the disk for many pages at once (madvise(2), MADV_WILLNEED), waits for them,
 * and leaves the interpreter to others meanwhile.
 */

#define _GNU_SOURCE /* process_vm_readv */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if SIZE_MAX != UINT64_MAX || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "LMDB's files have another layout on this machine"
#endif

enum {
    PAGE_HEADER_BYTES = 16,
    NODE_HEADER_BYTES = 8,
    DEPTH_MAX = 32, /* CURSOR_STACK: more levels than a tree can have */
    FEW_NODES = 8,  /* in a leaf with images up to 2 KB: all of them are prefetched, of others the middle one */
    LINE_BYTES = 64,
    COPIES_AHEAD = 4, /* values on their way while one is copied: of 1 to 3 KB, so that the nearest cache holds them */
    CLOCK_EVERY = 64, /* keys between two looks at the clock (27 ns), fewer at first: what is cold is mostly all cold */
    SLOW_NS = 50000,  /* they take 6 us by themselves: either another thread had the processor, or the disk was read */
    READS_AHEAD = 64, /* pages that one thread asks the disk for at once */
};

/* mp_flags and mn_flags */
enum { P_BRANCH = 0x01, P_LEAF = 0x02, P_OVERFLOW = 0x04, P_META = 0x08 };
enum { F_BIGDATA = 0x01 };

#define MDB_MAGIC 0xBEEFC0DEu
#define MDB_DATA_VERSION 1u
#define P_INVALID UINT64_MAX /* the root of an empty tree */

typedef struct { /* MDB_page */
    uint64_t number;
    uint16_t pad;
    uint16_t flags;
    union {
        struct {
            uint16_t lower, upper;
        };
        uint32_t overflow_pages;
    };
    uint16_t offsets[]; /* mp_ptrs: where each node begins */
} Page;

typedef struct { /* MDB_node */
    uint16_t low, high, flags, key_bytes;
    unsigned char key[];
} Node;

typedef struct { /* MDB_db */
    uint32_t pad;
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
} Database;

typedef struct { /* MDB_meta, behind a page header */
    uint32_t magic, version;
    uint64_t address, map_bytes;
    Database databases[2];
    uint64_t last_page, transaction;
} Meta;

typedef struct { /* the beginning of a home page, 0 or 1 */
    uint64_t number;
    uint16_t pad, flags;
    uint32_t unused;
    Meta meta;
} Home;

typedef struct {
    const unsigned char *base; /* where page 0 is mapped */
    uint64_t page_bytes, last_page;
} Map;

typedef struct { /* where a value is, and how long it is; a batch's, one after another, are a bytes object */
    const unsigned char *value;
    uint64_t bytes;
} Place;

typedef struct { /* one key on its way down */
    const unsigned char *key;
    Py_ssize_t key_bytes;
    uint64_t number; /* of the page to look at next */
    const unsigned char *value; /* NULL where there is none, or while it is known only by number */
    uint32_t value_bytes;
    bool overflows; /* the value begins at the overflow page `number` */
} Search;

/* A step of a search: part of the loop over all keys, wherever that is; 8 % faster than a call. */
#define STEP static inline __attribute__((always_inline)) bool

static inline const Page *page_of(const Map *map, uint64_t number) {
    return (const Page *)(map->base + number * map->page_bytes);
}

/* The page of this number where it is what it should be, NULL otherwise. */
static inline const Page *checked_page(const Map *map, uint64_t number, uint16_t kind) {
    if (number > map->last_page)
        return NULL;
    const Page *page = page_of(map, number);
    return page->number == number && (page->flags & (P_BRANCH | P_LEAF | P_OVERFLOW | P_META)) == kind ? page : NULL;
}

/* How many nodes a page has, 0 where it cannot be. */
static inline unsigned nodes_of(const Map *map, const Page *page) {
    return page->lower >= PAGE_HEADER_BYTES && page->lower <= map->page_bytes ? (page->lower - PAGE_HEADER_BYTES) / 2u : 0;
}

/* A node with its key where both lie within the page, NULL otherwise. */
static inline const Node *checked_node(const Map *map, const Page *page, unsigned index) {
    uint64_t offset = page->offsets[index];
    if (offset < page->lower || offset & 1 || offset + NODE_HEADER_BYTES > map->page_bytes)
        return NULL;
    const Node *node = (const Node *)((const unsigned char *)page + offset);
    return offset + NODE_HEADER_BYTES + node->key_bytes <= map->page_bytes ? node : NULL;
}

/* mdb_cmp_memn: as bytes, a shorter key before a longer one that begins with it. */
static inline int compare(const Search *search, const Node *node) {
    Py_ssize_t shorter = search->key_bytes < node->key_bytes ? search->key_bytes : node->key_bytes;
    int order = memcmp(search->key, node->key, (size_t)shorter);
    return order ? order : (search->key_bytes > node->key_bytes) - (search->key_bytes < node->key_bytes);
}

/* Go on to the child that may have the key: the last whose first key is not greater; the first child's key is empty. */
STEP descend(const Map *map, Search *search) {
    const Page *page = checked_page(map, search->number, P_BRANCH);
    unsigned nodes = page ? nodes_of(map, page) : 0;
    if (nodes == 0)
        return false;
    unsigned low = 0, high = nodes; /* child `low` may have it, child `high` may not */
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        const Node *node = checked_node(map, page, middle);
        if (!node)
            return false;
        if (compare(search, node) >= 0)
            low = middle;
        else
            high = middle;
    }
    const Node *node = checked_node(map, page, low);
    if (!node)
        return false;
    search->number = node->low | (uint64_t)node->high << 16 | (uint64_t)node->flags << 32;
    if (search->number > map->last_page)
        return false;
    __builtin_prefetch(page_of(map, search->number));
    return true;
}

/* Ask for the nodes of a leaf that will be compared first. */
STEP approach(const Map *map, const Search *search) {
    const Page *page = checked_page(map, search->number, P_LEAF);
    unsigned nodes = page ? nodes_of(map, page) : 0;
    if (nodes == 0)
        return false;
    if (nodes > FEW_NODES)
        __builtin_prefetch((const unsigned char *)page + page->offsets[nodes / 2]);
    else
        for (unsigned index = 0; index < nodes; index++)
            __builtin_prefetch((const unsigned char *)page + page->offsets[index]);
    return true;
}

/* Find the key in its leaf. */
STEP search_leaf(const Map *map, Search *search) {
    const Page *page = page_of(map, search->number); /* checked by `approach` */
    unsigned low = 0, high = nodes_of(map, page);
    while (low < high) {
        unsigned middle = (low + high) / 2;
        const Node *node = checked_node(map, page, middle);
        if (!node)
            return false;
        int order = compare(search, node);
        if (order > 0)
            low = middle + 1;
        else if (order < 0)
            high = middle;
        else {
            const unsigned char *value = node->key + node->key_bytes, *end = (const unsigned char *)page + map->page_bytes;
            search->value_bytes = node->low | (uint32_t)node->high << 16;
            search->overflows = node->flags == F_BIGDATA;
            if (search->overflows) {
                if (end - value < (Py_ssize_t)sizeof search->number)
                    return false;
                memcpy(&search->number, value, sizeof search->number);
                if (search->number > map->last_page)
                    return false;
                value = (const unsigned char *)page_of(map, search->number);
            } else {
                if (node->flags || end - value < (Py_ssize_t)search->value_bytes)
                    return false;
                search->value = value;
            }
            __builtin_prefetch(value);
            return true;
        }
    }
    return true;
}

/* Look at the page where a large value begins. */
STEP follow(const Map *map, Search *search) {
    if (!search->overflows)
        return true;
    const Page *page = checked_page(map, search->number, P_OVERFLOW);
    if (!page || page->overflow_pages == 0 || page->overflow_pages - 1 > map->last_page - search->number ||
        PAGE_HEADER_BYTES + (uint64_t)search->value_bytes > page->overflow_pages * map->page_bytes)
        return false;
    search->value = (const unsigned char *)page + PAGE_HEADER_BYTES;
    return true;
}

/* The pages that the next step of a search looks at: from `number` on; returns how many, 0 if it looks at none. */
static inline uint64_t next_pages(const Map *map, const Search *search, bool values) {
    if (!values)
        return 1;
    if (!search->overflows)
        return 0;
    uint64_t pages = (PAGE_HEADER_BYTES + (uint64_t)search->value_bytes + map->page_bytes - 1) / map->page_bytes;
    return pages <= map->last_page - search->number + 1 ? pages : 1;
}

/* The same as a range of the machine's pages; its bytes. */
static inline size_t next_range(const Map *map, const Search *search, bool values, unsigned char **start) {
    size_t bytes = (size_t)(next_pages(map, search, values) * map->page_bytes);
    uintptr_t address = (uintptr_t)page_of(map, search->number), odd = address & ((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
    *start = (unsigned char *)(address - odd);
    return bytes ? bytes + odd : 0;
}

typedef struct { /* whether a lookup has begun to wait for the disk */
    int64_t looked_ns;
    long faults;
} Watch;

static inline int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* How often this thread has waited for a page. */
static inline long faults_so_far(void) {
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_majflt;
}

static inline bool is_waiting(Watch *watch) {
    int64_t now_ns = clock_ns();
    bool slow = now_ns - watch->looked_ns > SLOW_NS;
    watch->looked_ns = now_ns;
    return slow && faults_so_far() > watch->faults;
}

/* Whether the pages that the next step looks at are in memory, for so many of the keys, evenly spread. */
static bool are_resident(const Map *map, const Search *searches, Py_ssize_t count, Py_ssize_t checks, bool values) {
    enum { PAGES_MAX = 1024 };
    unsigned char *start, residency[PAGES_MAX];
    for (Py_ssize_t check = 0; check < checks && check < count; check++) {
        const Search *search = &searches[checks < count ? check * count / checks : check];
        size_t bytes = next_range(map, search, values, &start), page_bytes = (size_t)sysconf(_SC_PAGESIZE);
        if (bytes > PAGES_MAX * page_bytes)
            bytes = PAGES_MAX * page_bytes;
        if (bytes == 0 || mincore(start, bytes, residency))
            continue;
        for (size_t page = 0; page * page_bytes < bytes; page++)
            if (!(residency[page] & 1))
                return false;
    }
    return true;
}

typedef enum { FOUND, UNKNOWN, COLD } Outcome;

/* All keys a step further, if their pages are there. */
#define FOR_ALL(step, values)                                                                                          \
    do {                                                                                                               \
        if (checks && !are_resident(map, searches, count, checks, values))                                             \
            return COLD;                                                                                               \
        for (Py_ssize_t index = 0, look = 1; index < count; look += look < CLOCK_EVERY ? look : CLOCK_EVERY) {         \
            for (Py_ssize_t stop = look < count ? look : count; index < stop; index++)                                 \
                if (!(step))                                                                                           \
                    return UNKNOWN;                                                                                    \
            if (is_waiting(&watch))                                                                                    \
                return COLD;                                                                                           \
        }                                                                                                              \
    } while (0)

/* Whether there is a tree to go down, and it is one of those that are known here. */
static bool is_known(const Map *map, const Database *database) {
    return !database->flags && database->depth <= DEPTH_MAX && (database->depth == 0) == (database->root == P_INVALID) &&
           (database->depth == 0 || database->root <= map->last_page);
}

static Outcome find_all(const Map *map, const Database *database, Search *searches, Py_ssize_t count, Py_ssize_t checks) {
    if (!is_known(map, database))
        return UNKNOWN;
    if (database->depth == 0)
        return FOUND;
    Watch watch = {clock_ns(), faults_so_far()};
    for (Py_ssize_t index = 0; index < count; index++)
        searches[index].number = database->root;
    for (unsigned level = 1; level < database->depth; level++)
        FOR_ALL(descend(map, &searches[index]), false);
    FOR_ALL(approach(map, &searches[index]), false);
    FOR_ALL(search_leaf(map, &searches[index]), false);
    FOR_ALL(follow(map, &searches[index]), true);
    return FOUND;
}

/* Ask the disk for the pages that the next step looks at, of the keys from `from` to `to`. */
static void read_ahead(const Map *map, const Search *searches, Py_ssize_t from, Py_ssize_t to, bool values) {
    uint64_t before = P_INVALID;
    for (; from < to; from++) {
        unsigned char *start;
        size_t bytes = next_range(map, &searches[from], values, &start);
        if (bytes && searches[from].number != before)
            madvise(start, bytes, MADV_WILLNEED); /* without it they are read one by one */
        before = searches[from].number;
    }
}

/* Look at every page that a value takes. */
static void touch_value(const Map *map, const Search *search) {
    if (search->overflows)
        for (uint64_t page = 0; page < next_pages(map, search, true); page++)
            (void)*(const volatile uint64_t *)page_of(map, search->number + page);
}

/* All keys a step further, with the pages of the next ones on their way. */
#define WARM_ALL(step, values)                                                                                         \
    for (Py_ssize_t from = 0; from < count; from += READS_AHEAD) {                                                     \
        Py_ssize_t to = count - from < READS_AHEAD ? count : from + READS_AHEAD;                                       \
        if (from == 0)                                                                                                 \
            read_ahead(map, searches, 0, to, values);                                                                  \
        read_ahead(map, searches, to, count - to < READS_AHEAD ? count : to + READS_AHEAD, values);                    \
        for (Py_ssize_t index = from; index < to; index++)                                                             \
            if (!(step))                                                                                               \
                return false;                                                                                          \
    }                                                                                                                  \
    (void)0

static bool warm_all(const Map *map, const Database *database, Search *searches, Py_ssize_t count) {
    if (!is_known(map, database))
        return false;
    if (database->depth == 0)
        return true;
    for (Py_ssize_t index = 0; index < count; index++)
        searches[index].number = database->root;
    for (unsigned level = 1; level < database->depth; level++) {
        WARM_ALL(descend(map, &searches[index]), false);
    }
    WARM_ALL(approach(map, &searches[index]), false);
    for (Py_ssize_t index = 0; index < count; index++)
        if (!search_leaf(map, &searches[index]))
            return false;
    WARM_ALL((touch_value(map, &searches[index]), follow(map, &searches[index])), true);
    return true;
}

/* Copy what stands at both home pages, as far as `Home`; false where nothing does: the kernel says so, where a look would
 * end the process. */
static bool read_homes(Home homes[2], const unsigned char *base, uint64_t page_bytes) {
    struct iovec local = {homes, 2 * sizeof *homes};
    struct iovec remote[2] = {{(void *)base, sizeof *homes}, {(void *)(base + page_bytes), sizeof *homes}};
    return process_vm_readv(getpid(), &local, 1, remote, 2, 0) == (ssize_t)(2 * sizeof *homes);
}

/* Find the map from the place of a record in it: its page says which number it has. A number that is damaged may lead
 * anywhere, so what stands there has to be the home pages of a map in which the record lies. */
static bool find_map(Map *map, const unsigned char *record, uint64_t page_bytes) {
    if (page_bytes < 512 || page_bytes & (page_bytes - 1) || page_bytes > (uint64_t)sysconf(_SC_PAGESIZE))
        return false; /* larger pages than the machine's need not begin at a multiple of their size */
    const Page *page = (const Page *)((uintptr_t)record & ~(page_bytes - 1));
    uint64_t number = page->number;
    if (number > (uintptr_t)page / page_bytes)
        return false;
    map->base = (const unsigned char *)page - number * page_bytes;
    map->page_bytes = page_bytes;
    Home homes[2];
    if (!read_homes(homes, map->base, page_bytes))
        return false;
    for (uint64_t index = 0; index < 2; index++) {
        const Home *home = &homes[index];
        if (home->number != index || !(home->flags & P_META) || home->meta.magic != MDB_MAGIC ||
            home->meta.version != MDB_DATA_VERSION || home->meta.databases[0].pad != page_bytes)
            return false;
    }
    const Meta *newer = &homes[homes[1].meta.transaction > homes[0].meta.transaction].meta;
    map->last_page = newer->last_page;
    return newer->last_page < newer->map_bytes / page_bytes && number <= newer->last_page;
}

/* The lengths of the values, and where they are; NULL with an exception. */
static PyObject *places_of(const Search *searches, Py_ssize_t count) {
    PyObject *lengths = PyList_New(count);
    PyObject *packed = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(Place));
    Place *places = packed ? (Place *)PyBytes_AsString(packed) : NULL;
    for (Py_ssize_t index = 0; lengths && packed && index < count; index++) {
        const Search *search = &searches[index];
        places[index] = (Place){search->value, search->value ? search->value_bytes : 0};
        PyObject *length = PyLong_FromUnsignedLongLong(places[index].bytes);
        if (!length || PyList_SetItem(lengths, index, length))
            Py_CLEAR(lengths);
    }
    PyObject *result = lengths && packed ? PyTuple_Pack(2, lengths, packed) : NULL;
    Py_XDECREF(lengths);
    Py_XDECREF(packed);
    return result;
}

/* How many bytes the values of a batch have; -1 with an exception. */
static Py_ssize_t batch_bytes(PyObject *batch) {
    Py_ssize_t total = 0;
    if (PyList_Check(batch)) {
        for (Py_ssize_t index = 0; index < PyList_Size(batch); index++) {
            Py_ssize_t bytes = PyObject_Size(PyList_GetItem(batch, index));
            if (bytes < 0)
                return -1;
            total += bytes;
        }
        return total;
    }
    const Place *places = (const Place *)PyBytes_AsString(batch);
    if (!places)
        return -1;
    for (Py_ssize_t count = PyBytes_Size(batch) / (Py_ssize_t)sizeof *places; count > 0; count--)
        total += (Py_ssize_t)(places++)->bytes;
    return total;
}

/* Copy the values at these places to `end`; return the end of what is there then. */
static char *copy_places(char *end, PyObject *batch) {
    const Place *place = (const Place *)PyBytes_AsString(batch);
    const Place *stop = place + PyBytes_Size(batch) / (Py_ssize_t)sizeof *place;
    for (; place < stop; place++) {
        if (place + COPIES_AHEAD < stop)
            for (uint64_t offset = 0; offset < place[COPIES_AHEAD].bytes; offset += LINE_BYTES)
                __builtin_prefetch(place[COPIES_AHEAD].value + offset);
        if (place->bytes)
            memcpy(end, place->value, place->bytes);
        end += place->bytes;
    }
    return end;
}

/* The same for views; NULL with an exception. */
static char *copy_views(char *end, const char *limit, PyObject *batch) {
    for (Py_ssize_t index = 0; index < PyList_Size(batch); index++) {
        Py_buffer view;
        if (PyObject_GetBuffer(PyList_GetItem(batch, index), &view, PyBUF_SIMPLE))
            return NULL;
        bool fits = view.len <= limit - end;
        if (fits) {
            memcpy(end, view.buf, (size_t)view.len);
            end += view.len;
        } else
            PyErr_SetString(PyExc_ValueError, "a view has more bytes than items");
        PyBuffer_Release(&view);
        if (!fits)
            return NULL;
    }
    return end;
}

/* Take the keys; false with an exception where one is not bytes, without where one is empty. */
static bool take_keys(Search *searches, PyObject *keys, Py_ssize_t count) {
    for (Py_ssize_t index = 0; index < count; index++) {
        char *key;
        if (PyBytes_AsStringAndSize(PyList_GetItem(keys, index), &key, &searches[index].key_bytes))
            return false;
        if (searches[index].key_bytes == 0)
            return false;
        searches[index].key = (const unsigned char *)key;
    }
    return true;
}

/* What `find` and `warm` are given: a record, the page size, and keys. */
typedef struct {
    Py_buffer record;
    Map map;
    Database database;
    Search *searches;
    Py_ssize_t count;
} Request;

/* Take the arguments; false with an exception, or without if LMDB has to be asked. Release the request in any case. */
static bool take_request(Request *request, Py_ssize_t page_bytes, PyObject *keys) {
    request->count = PyList_Size(keys);
    request->searches = PyMem_Calloc((size_t)request->count + 1, sizeof *request->searches); /* never nothing */
    if (!request->searches) {
        PyErr_NoMemory();
        return false;
    }
    if (!take_keys(request->searches, keys, request->count) || request->record.len != sizeof request->database ||
        !find_map(&request->map, request->record.buf, (uint64_t)page_bytes))
        return false;
    memcpy(&request->database, request->record.buf, sizeof request->database); /* it may lie at an odd place */
    return true;
}

static void release_request(Request *request) {
    PyMem_Free(request->searches);
    PyBuffer_Release(&request->record);
}

PyDoc_STRVAR(find_doc,
             "find(record, page_bytes, keys, checks, /)\n--\n\n"
             "Return the length of each key's value, 0 if there is none, and the places of the values as `join` takes\n"
             "them; None if LMDB has to be asked.\n\n"
             "`record` is a view of the database's record, out of the main database, by the transaction that reads: the\n"
             "places are valid as long as it is open. `page_bytes` is the environment's page size. `checks`: for how many\n"
             "keys to look beforehand whether their pages are in memory.\n\n"
             "Raises BlockingIOError if the disk has to be read: `warm` does that.");

static PyObject *find(PyObject *Py_UNUSED(module), PyObject *args) {
    Request request = {0};
    Py_ssize_t page_bytes, checks;
    PyObject *keys, *result = NULL;
    if (!PyArg_ParseTuple(args, "y*nO!n:find", &request.record, &page_bytes, &PyList_Type, &keys, &checks))
        return NULL;
    if (take_request(&request, page_bytes, keys)) {
        Outcome outcome = find_all(&request.map, &request.database, request.searches, request.count, checks);
        if (outcome == FOUND)
            result = places_of(request.searches, request.count);
        else if (outcome == COLD)
            PyErr_SetNone(PyExc_BlockingIOError);
    }
    release_request(&request);
    if (!result && !PyErr_Occurred())
        return Py_NewRef(Py_None);
    return result;
}

PyDoc_STRVAR(warm_doc,
             "warm(record, page_bytes, keys, /)\n--\n\n"
             "Wait until everything that `find` and `join` will look at for these keys was read from the disk; other\n"
             "threads run meanwhile. Return False if LMDB has to be asked.");

static PyObject *warm(PyObject *Py_UNUSED(module), PyObject *args) {
    Request request = {0};
    Py_ssize_t page_bytes;
    PyObject *keys;
    if (!PyArg_ParseTuple(args, "y*nO!:warm", &request.record, &page_bytes, &PyList_Type, &keys))
        return NULL;
    bool warmed = false;
    if (take_request(&request, page_bytes, keys)) {
        Py_BEGIN_ALLOW_THREADS
        warmed = warm_all(&request.map, &request.database, request.searches, request.count);
        Py_END_ALLOW_THREADS
    }
    release_request(&request);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(warmed);
}

PyDoc_STRVAR(views_doc,
             "views(places, /)\n--\n\n"
             "Return a view of each value at these places, as `find` returned them, whose transaction has to be open for\n"
             "as long as there are any.");

static PyObject *views(PyObject *Py_UNUSED(module), PyObject *places) {
    char *packed;
    Py_ssize_t bytes;
    if (PyBytes_AsStringAndSize(places, &packed, &bytes))
        return NULL;
    const Place *place = (const Place *)packed;
    Py_ssize_t count = bytes / (Py_ssize_t)sizeof *place;
    PyObject *list = PyList_New(count);
    for (Py_ssize_t index = 0; list && index < count; index++, place++) {
        PyObject *view = place->bytes
                             ? PyMemoryView_FromMemory((char *)place->value, (Py_ssize_t)place->bytes, PyBUF_READ)
                             : PyBytes_FromStringAndSize(NULL, 0);
        if (!view || PyList_SetItem(list, index, view))
            Py_CLEAR(list);
    }
    return list;
}

PyDoc_STRVAR(join_doc,
             "join(head, batches, /)\n--\n\n"
             "Return the bytes `head` and, one after another, the values of each batch: places, as `find` returned them,\n"
             "whose transaction has to be open; or a list of bytes and views.");

static PyObject *join(PyObject *Py_UNUSED(module), PyObject *args) {
    char *head;
    Py_ssize_t head_bytes;
    PyObject *batches;
    if (!PyArg_ParseTuple(args, "y#O!:join", &head, &head_bytes, &PyList_Type, &batches))
        return NULL;
    Py_ssize_t total = head_bytes, count = PyList_Size(batches);
    for (Py_ssize_t index = 0; index < count; index++) {
        Py_ssize_t bytes = batch_bytes(PyList_GetItem(batches, index));
        if (bytes < 0)
            return NULL;
        total += bytes;
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, total);
    if (!joined)
        return NULL;
    char *end = PyBytes_AsString(joined), *limit = end + total;
    memcpy(end, head, (size_t)head_bytes);
    end += head_bytes;
    for (Py_ssize_t index = 0; end && index < count; index++) {
        PyObject *batch = PyList_GetItem(batches, index);
        end = PyList_Check(batch) ? copy_views(end, limit, batch) : copy_places(end, batch);
    }
    if (!end)
        Py_CLEAR(joined);
    return joined;
}

static PyMethodDef methods[] = {
    {"find", find, METH_VARARGS, find_doc},
    {"join", join, METH_VARARGS, join_doc},
    {"views", views, METH_O, views_doc},
    {"warm", warm, METH_VARARGS, warm_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_lookup", "Many keys of one LMDB database looked up at once.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__lookup(void) { return PyModuleDef_Init(&definition); }
