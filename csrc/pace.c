/* A module of PostgreSQL that holds a database's sessions to so much write-ahead log a second as
 * `ichibase.log_rate` says. All databases of a server share one log: who writes it as fast as goes
 * holds its locks, fills its buffers and has every reader of it decode what is none of its own.
 *
 * A session is made to wait where it holds no lock that another database's could wait for: between
 * two rows of a plan, and behind a statement. */
#include "postgres.h"

#include <time.h>

#include "access/transam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "executor/instrument.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

PG_MODULE_MAGIC;

#define SLOTS 16384               /* databases that are told apart; a power of two */
#define CHUNK (64 * 1024)         /* bytes of log that are paid at once */
#define COMMIT 8192               /* what a commit counts besides: a page of the log is flushed */
#define AHEAD INT64CONST(1000000) /* microseconds' worth that may be written at once */
#define MOST INT64CONST(3000000)  /* microseconds of the longest wait; statements have time limits */

typedef struct {
    pg_atomic_uint32 database;
    pg_atomic_uint64 paid; /* microsecond at which all that has been written is paid for */
} Account;

static Account *accounts;
static Account *own;
static int rate;       /* kB a second; 0: as much as goes */
static uint64 commits; /* bytes that this session's commits count */
static uint64 counted; /* bytes of this session's log, and of its commits, that it has paid for */
static uint32 wait_event;

static shmem_request_hook_type next_request;
static shmem_startup_hook_type next_startup;
static ExecutorStart_hook_type next_start;
static ExecutorFinish_hook_type next_finish;
static ProcessUtility_hook_type next_utility;

void _PG_init(void);

static int64 now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64CONST(1000000) + now.tv_nsec / 1000;
}

/* The account of this session's database: its own, or one of others where all are taken. */
static Account *account(void)
{
    uint32 begin = MyDatabaseId * 2654435761u, tries;
    for (tries = 0; tries < SLOTS; tries++) {
        Account *one = &accounts[(begin + tries) % SLOTS];
        uint32 found = 0;
        if (pg_atomic_compare_exchange_u32(&one->database, &found, MyDatabaseId) ||
            found == MyDatabaseId)
            return one;
    }
    return &accounts[begin % SLOTS];
}

static void rest(int64 us)
{
    int64 end = now_us() + us;
    if (wait_event == 0)
        wait_event = WaitEventExtensionNew("IchibaseLogRate");
    /* Whoever is cancelled or ended goes on, to where that is looked at. */
    while (!InterruptPending && us >= 1000) {
        int woken = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, us / 1000,
                              wait_event);
        if (woken & WL_LATCH_SET)
            ResetLatch(MyLatch);
        us = end - now_us();
    }
}

static inline uint64 unpaid(void)
{
    return pgWalUsage.wal_bytes + commits - counted;
}

static void pay(void)
{
    uint64 bytes = unpaid();
    int64 cost = (int64)(Min(bytes, UINT64CONST(1) << 40) * 1000000 / ((uint64)rate * 1024));
    int64 now = now_us(), paid;
    uint64 before;

    counted += bytes;
    if (own == NULL)
        own = account();
    before = pg_atomic_read_u64(&own->paid);
    do
        paid = Min(Max((int64)before, now) + cost, now + AHEAD + MOST);
    while (!pg_atomic_compare_exchange_u64(&own->paid, &before, (uint64)paid));
    if (paid - now > AHEAD)
        rest(paid - now - AHEAD);
}

static inline void settle(void)
{
    if (unlikely(unpaid() >= CHUNK) && rate > 0 && accounts != NULL)
        pay();
}

static TupleTableSlot *paced(PlanState *node)
{
    TupleTableSlot *row;
    settle();
    if (likely(node->instrument == NULL))
        return node->ExecProcNodeReal(node);
    InstrStartNode(node->instrument);
    row = node->ExecProcNodeReal(node);
    InstrStopNode(node->instrument, TupIsNull(row) ? 0.0 : 1.0);
    return row;
}

static bool pace(PlanState *node, void *context)
{
    node->ExecProcNode = paced;
    return planstate_tree_walker(node, pace, context);
}

static void start(QueryDesc *query, int flags)
{
    if (next_start)
        next_start(query, flags);
    else
        standard_ExecutorStart(query, flags);
    if (rate > 0 && !(flags & EXEC_FLAG_EXPLAIN_ONLY) && query->planstate != NULL)
        pace(query->planstate, NULL);
}

static void finish(QueryDesc *query)
{
    if (next_finish)
        next_finish(query);
    else
        standard_ExecutorFinish(query);
    settle();
}

static void utility(PlannedStmt *statement, const char *text, bool read_only_tree,
                    ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
                    DestReceiver *receiver, QueryCompletion *completion)
{
    if (next_utility)
        next_utility(statement, text, read_only_tree, context, params, env, receiver, completion);
    else
        standard_ProcessUtility(statement, text, read_only_tree, context, params, env, receiver,
                                completion);
    settle();
}

static void transaction(XactEvent event, void *context)
{
    if (event == XACT_EVENT_PRE_COMMIT && TransactionIdIsValid(GetTopTransactionIdIfAny()))
        commits += COMMIT;
}

static void changed(int value, void *extra)
{
    counted += unpaid();
}

static void request(void)
{
    if (next_request)
        next_request();
    RequestAddinShmemSpace(SLOTS * sizeof(Account));
}

static void startup(void)
{
    bool found;
    if (next_startup)
        next_startup();
    accounts = ShmemInitStruct("ichibase accounts of log", SLOTS * sizeof(Account), &found);
    if (!found)
        for (int i = 0; i < SLOTS; i++) {
            pg_atomic_init_u32(&accounts[i].database, 0);
            pg_atomic_init_u64(&accounts[i].paid, 0);
        }
}

void _PG_init(void)
{
    if (!process_shared_preload_libraries_in_progress)
        return;
    DefineCustomIntVariable("ichibase.log_rate",
                            "Write-ahead log that the sessions of a database may write a second.",
                            "0 is as much as they can.", &rate, 0, 0, INT_MAX, PGC_SUSET,
                            GUC_UNIT_KB, NULL, changed, NULL);
    next_request = shmem_request_hook;
    shmem_request_hook = request;
    next_startup = shmem_startup_hook;
    shmem_startup_hook = startup;
    next_start = ExecutorStart_hook;
    ExecutorStart_hook = start;
    next_finish = ExecutorFinish_hook;
    ExecutorFinish_hook = finish;
    next_utility = ProcessUtility_hook;
    ProcessUtility_hook = utility;
    RegisterXactCallback(transaction, NULL);
}
